"""Files of keys, and whom a header lets in."""

import base64
from pathlib import Path

import pytest

from libs.kernel.errors import ConfigError
from services.http_gateway.api_keys import ApiKeys, KeyHolder

KEY = "sk-0123456789abcdef"


def keys_of(folder: Path, text: str) -> ApiKeys:
    file = folder / "keys"
    file.write_text(text)
    return ApiKeys.read(file)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_a_key_is_for_anybody_or_for_one_tenant(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, f"# who\n\n{KEY}-any\n  {KEY}-search\tsearch \n")
    assert keys.holder_of(f"Bearer {KEY}-any") == KeyHolder(tenant=None)
    assert keys.holder_of(f"bearer {KEY}-search") == KeyHolder(tenant="search")
    assert keys.holder_of(basic("me", f"{KEY}-search")) == KeyHolder(tenant="search")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        KEY,
        f"Token {KEY}",
        basic(KEY, ""),
        "Basic not*base64",
        "Basic " + base64.b64encode(b"\xff\xfe:").decode(),
    ],
)
def test_nothing_else_lets_anybody_in(tmp_path: Path, header: str) -> None:
    assert keys_of(tmp_path, KEY).holder_of(header) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no keys"),
        ("# sk-0123456789abcdef\n", "no keys"),
        (f"{KEY}\nshort\n", ":2:"),
        (f"{KEY} search more\n", ":1:"),
        (f"{KEY} se/arch\n", ":1:"),
        (f"{KEY}\n{KEY} search\n", ":2:"),
        ("sk-0123456789äöü", ":1:"),
    ],
)
def test_a_file_that_is_not_in_order_is_told_by_its_line_and_never_by_a_key(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        keys_of(tmp_path, text)
    assert KEY not in str(raised.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        ApiKeys.read(tmp_path / "nothing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        ApiKeys.read(tmp_path / "binary")

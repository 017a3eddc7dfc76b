"""Configuration from TOML and the environment."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest

from libs.kernel.errors import ConfigError
from libs.runtime.config import read_config, resolved


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nested:
    depth: int = 1
    name: str = "n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    model: str
    streams_max: int = 10
    ratio: float = 0.5
    is_fast: bool = False
    colour: Colour = Colour.RED
    mode: Literal["a", "b"] = "a"
    folder: Path | None = None
    limit: int | None = 3
    names: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    nested: Nested = Nested()
    nats_url: str = "nats://user:hunter2@127.0.0.1"
    auth_token: str | None = None

    def __post_init__(self) -> None:
        if self.streams_max <= 0:
            raise ConfigError("streams_max: must be positive")


def read(text: str = "", /, tmp_path: Path | None = None, **environment: str) -> Options:
    file = None
    if tmp_path is not None:
        file = tmp_path / "c.toml"
        file.write_text(text)
    return read_config(Options, service="router", file=file, environment=environment)


def test_the_environment_overrides_the_file_which_overrides_the_defaults(tmp_path):
    options = read(
        'model = "file"\nstreams_max = 20\n[nested]\ndepth = 2\n',
        tmp_path,
        ROUTER__MODEL="environment",
        ROUTER__NESTED__NAME="x",
        OTHER__MODEL="other",
        PATH="/bin",
    )
    assert options.model == "environment"
    assert options.streams_max == 20
    assert options.nested == Nested(depth=2, name="x")
    assert options.ratio == 0.5


def test_every_type_of_field_can_come_from_the_environment():
    options = read(
        ROUTER__MODEL="m",
        ROUTER__STREAMS_MAX="1_000",
        ROUTER__RATIO="2",
        ROUTER__IS_FAST="yes",
        ROUTER__COLOUR="blue",
        ROUTER__MODE="b",
        ROUTER__FOLDER="/tmp/x",
        ROUTER__LIMIT="none",
        ROUTER__NAMES="a, b",
        ROUTER__PAIR="4,5",
    )
    assert options == Options(
        model="m",
        streams_max=1000,
        ratio=2.0,
        is_fast=True,
        colour=Colour.BLUE,
        mode="b",
        folder=Path("/tmp/x"),
        limit=None,
        names=("a", "b"),
        pair=(4, 5.0),
    )


def test_every_type_of_field_can_come_from_toml(tmp_path):
    text = """
    model = "m"
    ratio = 1
    is_fast = true
    colour = "blue"
    folder = "/tmp/x"
    names = ["a", "b"]
    pair = [4, 5.5]
    """
    options = read(text, tmp_path)
    assert options.ratio == 1.0
    assert options.colour is Colour.BLUE
    assert options.names == ("a", "b")
    assert options.pair == (4, 5.5)


def test_a_table_of_the_services_own_hides_those_of_others(tmp_path):
    options = read('[router]\nmodel = "mine"\n[other]\nwhatever = 1\n', tmp_path)
    assert options.model == "mine"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, r"router\.model: must be set"),
        ({"ROUTER__MODEL": "m", "ROUTER__STREAMZ": "1"}, "ROUTER__STREAMZ: no such field"),
        ({"ROUTER__MODEL": "m", "ROUTER__STREAMS_MAX": "ten"}, "ROUTER__STREAMS_MAX: must be int"),
        ({"ROUTER__MODEL": "m", "ROUTER__STREAMS_MAX": "0"}, "streams_max: must be positive"),
        ({"ROUTER__MODEL": "m", "ROUTER__IS_FAST": "maybe"}, "ROUTER__IS_FAST: must be true"),
        ({"ROUTER__MODEL": "m", "ROUTER__COLOUR": "green"}, r"router\.colour: must be one of red"),
        ({"ROUTER__MODEL": "m", "ROUTER__PAIR": "1"}, "ROUTER__PAIR: must have 2 items"),
        ({"ROUTER__MODEL": "m", "ROUTER__NESTED": "1"}, "ROUTER__NESTED: is a table"),
        ({"ROUTER__MODEL": "m", "ROUTER__NESTED__X": "1"}, "ROUTER__NESTED__X: no such field"),
        ({"ROUTER__MODEL": "m", "ROUTER__LIMIT__X": "1"}, "limit is no table"),
    ],
)
def test_a_mistake_is_one_error_that_names_the_field(environment, named):
    with pytest.raises(ConfigError, match=named):
        read_config(Options, service="router", environment=environment)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model = 3", r"router\.model: must be str"),
        ('model = "m"\nstreams_max = true', r"router\.streams_max: must be int"),
        ('model = "m"\nstreams_max = 1.5', r"router\.streams_max: must be int"),
        ('model = "m"\nunknown = 1', r"router\.unknown: no such field"),
        ('model = "m"\nnested = 1', r"router\.nested: must be a table"),
        ('model = "m"\nnames = [1]', r"router\.names\[0\]: must be str"),
        ("model = ", r"c\.toml"),
    ],
)
def test_a_mistake_in_the_file_names_the_field_or_the_file(tmp_path, text, named):
    with pytest.raises(ConfigError, match=named):
        read(text, tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        read_config(Options, service="router", file=tmp_path / "nothing.toml", environment={})


def test_secrets_are_not_in_the_resolved_configuration():
    shown = resolved(Options(model="m", auth_token="hunter2"))
    assert "hunter2" not in repr(shown)
    assert shown["nats_url"] == "nats://127.0.0.1"
    assert shown["nested"] == {"depth": 1, "name": "n"}
    assert shown["streams_max"] == 10

"""Messages of an older and of a newer peer are understood."""

from typing import Any

import pytest

from libs.contracts.online import ANSWERS, SUBMISSIONS, SamplingParameters, SubmitRequest
from libs.contracts.reports import REPORTS, RouterReport
from libs.contracts.text import TokenizeText
from libs.contracts.wire import Encoding, Message, describe, encode, encoding_of
from libs.kernel.errors import ContractViolation
from tools.document_messages import DOCUMENT, render


def test_messages_md_is_in_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(), "python -m tools.document_messages"


def test_a_field_of_a_newer_peer_is_ignored(messages: tuple[Message, ...]) -> None:
    for message in messages:
        newer = with_unknown_fields(message.model_dump(mode="json"))
        assert type(message).model_validate(newer) == message


def test_a_field_that_an_older_peer_lacks_takes_its_default(messages: tuple[Message, ...]) -> None:
    for message in messages:
        whole = message.model_dump(mode="json")
        for name, field in type(message).model_fields.items():
            if field.is_required() or name == "type" or is_needed(message, name):
                continue
            older = {key: value for key, value in whole.items() if key != name}
            default = field.get_default(call_default_factory=True)
            assert getattr(type(message).model_validate(older), name) == default


def test_a_report_of_the_first_release_is_still_read() -> None:
    first = {"type": "router_report.v1", "router_id": "a", "beat": 0, "journal_id": "j"}
    whole = first | {"process_id": 1, "sessions_open": 0, "sessions_accepted": 0}
    decoded = REPORTS.decode(encode(RouterReport.model_validate(whole)))
    assert isinstance(decoded, RouterReport)
    assert decoded.sessions_resumed == 0


def test_an_unknown_tag_is_refused_and_named() -> None:
    with pytest.raises(ContractViolation, match="tag"):
        ANSWERS.decode(b'{"type": "request_accepted.v9", "request_id": "a"}')


def test_a_bad_field_is_named_by_its_path_and_not_echoed() -> None:
    secret = "do not repeat me"
    payload = f'{{"request_id": "a", "prompt": "x", "sampling": {{"top_p": "{secret}"}}}}'
    with pytest.raises(ContractViolation, match=r"sampling\.top_p") as caught:
        SUBMISSIONS.decode(payload.encode())
    assert secret not in str(caught.value)


def test_exactly_one_prompt_is_asked_for() -> None:
    for payload in (b'{"request_id": "a"}', b'{"request_id":"a","prompt":"x","messages":[]}'):
        with pytest.raises(ContractViolation, match="exactly one"):
            SUBMISSIONS.decode(payload)
    with pytest.raises(ContractViolation, match="prompt is empty"):
        SUBMISSIONS.decode(b'{"request_id": "a", "prompt": ""}')


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 2.0, "top_p": 1.0, "top_k": 1, "seed": 2**63 - 1},
        {"temperature": 0.0, "top_p": 0.001, "top_k": None, "seed": -(2**63)},
    ],
)
def test_sampling_at_its_bounds_is_taken(sampling: dict[str, Any]) -> None:
    SamplingParameters.model_validate(sampling)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 2.01},
        {"temperature": -0.01},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_k": 0},
        {"seed": 2**63},
    ],
)
def test_sampling_past_its_bounds_is_refused(sampling: dict[str, Any]) -> None:
    request = {"request_id": "a", "prompt": "x", "sampling": sampling}
    with pytest.raises(ValueError, match="sampling"):
        SubmitRequest.model_validate(request)


def test_the_first_byte_tells_the_encoding() -> None:
    assert encoding_of(b' \n{"a": 1}') is Encoding.JSON
    assert encoding_of(b"\x81\xa1a\x01") is Encoding.MSGPACK
    assert encoding_of(b"") is Encoding.MSGPACK


def test_describe_is_one_line() -> None:
    with pytest.raises(ValueError, match="prompt") as caught:
        SubmitRequest.model_validate({"request_id": "a", "prompt": 3})
    assert "\n" not in describe(caught.value)  # type: ignore[arg-type]


def is_needed(message: Message, name: str) -> bool:
    """A submission without its one prompt is no message."""
    prompts = {"prompt", "messages", "prompt_token_ids"}
    return isinstance(message, SubmitRequest | TokenizeText) and name in prompts


def with_unknown_fields(value: Any) -> Any:
    if isinstance(value, dict):
        # A table of the client's own keys has no fields to be unknown.
        grown = {
            key: item if key in ("logit_bias", "metadata") else with_unknown_fields(item)
            for key, item in value.items()
        }
        return grown | {"field_of_the_future": {"a": [1]}}
    if isinstance(value, list):
        return [with_unknown_fields(item) for item in value]
    return value

"""What clients write in their own form fits both encodings, or is refused when it is read."""

import pytest
from pydantic import JsonValue, ValidationError

from libs.contracts.online import SUBMISSIONS, SubmitRequest
from libs.contracts.wire import Encoding, encode
from libs.kernel.errors import ContractViolation


def with_tool(number: int | float) -> SubmitRequest:
    tool: dict[str, JsonValue] = {"type": "function", "function": {"limits": [1, {"n": number}]}}
    return SubmitRequest.model_validate(
        {"request_id": "r", "messages": [{"role": "user", "content": "?"}], "tools": [tool]}
    )


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("number", [-(2**63), 2**64 - 1, 1e300, -0.5])
def test_numbers_that_msgpack_has_pass_in_both_encodings(
    encoding: Encoding, number: int | float
) -> None:
    request = with_tool(number)
    assert SUBMISSIONS.decode(encode(request, encoding=encoding)) == request


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**64, 10**40])
def test_an_integer_that_msgpack_lacks_is_refused_before_it_is_sent(number: int) -> None:
    with pytest.raises(ValidationError, match="integer is outside"):
        with_tool(number)


def test_such_an_integer_in_a_message_in_json_is_a_contract_violation() -> None:
    payload = encode(with_tool(4_444), encoding=Encoding.JSON).replace(b"4444", b"9" * 30)
    with pytest.raises(ContractViolation, match="tools"):
        SUBMISSIONS.decode(payload)

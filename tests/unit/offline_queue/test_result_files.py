"""The lines of output and error files, as OpenAI's clients read them."""

import json

from libs.contracts.batches import BatchLineEnded, LineFailure
from services.offline_queue.result_files import EXPIRED, result_line


def ended(**fields: object) -> BatchLineEnded:
    return BatchLineEnded(
        **{
            "batch_id": "batch_00000001",
            "line": 7,
            "custom_id": 'said "≈" \\',
            "request_id": "line-00-7",
            "status_code": 200,
            **fields,
        }  # type: ignore[arg-type]
    )


def test_an_answer_is_one_line_with_its_body_as_it_is() -> None:
    body = '{"text":"two\\nlines","n":1.0}'
    written = result_line(ended(), body_json=body)
    assert written.endswith(b"}\n")
    assert written.count(b"\n") == 1
    assert json.loads(written) == {
        "id": "batch_req_line-00-7",
        "custom_id": 'said "≈" \\',
        "response": {"status_code": 200, "request_id": "line-00-7", "body": json.loads(body)},
        "error": None,
    }


def test_a_line_without_a_response_has_an_error() -> None:
    written = json.loads(result_line(ended(status_code=None, failure=EXPIRED), body_json=""))
    assert written["response"] is None
    assert written["error"]["code"] == "batch_expired"


def test_a_message_may_hold_anything() -> None:
    failure = LineFailure(code="c", message='a "quote"\nand more')
    written = result_line(ended(status_code=None, failure=failure), body_json="")
    assert json.loads(written)["error"]["message"] == 'a "quote"\nand more'

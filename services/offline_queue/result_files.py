"""The lines of a batch's output and error file; pure.

Source of the form: OpenAI's Batch API, "The request output object": answers go to the output file;
refusals, failures and what expired go to the error file.
"""

import json
from typing import Final

from libs.contracts.batches import BatchLineEnded, LineFailure

EXPIRED: Final = LineFailure(
    code="batch_expired",
    message="This request could not be executed before the completion window expired.",
)
CANCELLED: Final = LineFailure(
    code="batch_cancelled",
    message="This request was not executed: the batch was cancelled.",
)


def result_line(ended: BatchLineEnded, *, body_json: str) -> bytes:
    """Return the line that tells how one request ended; the body goes in as it is."""
    head = f'{{"id":{json.dumps(f"batch_req_{ended.request_id}")}'
    head += f',"custom_id":{json.dumps(ended.custom_id, ensure_ascii=False)}'
    if ended.failure is not None or ended.status_code is None:
        failure = ended.failure or LineFailure(code="server_error", message="no response")
        error = json.dumps({"code": failure.code, "message": failure.message}, ensure_ascii=False)
        return f'{head},"response":null,"error":{error}}}\n'.encode()
    response = (
        f'{{"status_code":{ended.status_code},"request_id":{json.dumps(ended.request_id)}'
        f',"body":{body_json}}}'
    )
    return f'{head},"response":{response},"error":null}}\n'.encode()

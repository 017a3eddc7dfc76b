"""How every error becomes a response in OpenAI's envelope."""

from http import HTTPStatus

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from libs.client.batches import BatchRefused
from libs.kernel.errors import Unavailable
from libs.openai_api.errors import RETRY_AFTER_NS, SERVER_ERROR, ApiError, ErrorAnswer
from libs.runtime.bus import BusRefusal
from services.http_gateway.answering import CLIENT_GONE_STATUS
from services.http_gateway.batches.errors import from_batch_refusal, unavailable
from services.http_gateway.request_ids import request_id_of

_log = structlog.get_logger(__name__)


def answer_errors(app: FastAPI) -> None:
    """Have the application answer whatever its routes raise."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(BatchRefused, _batch_refused)
    app.add_exception_handler(Unavailable, _unavailable)
    app.add_exception_handler(BusRefusal, _bus_refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _unexpected)


def answer_with(answer: ErrorAnswer) -> Response:
    """Return the error as a response, with the headers that clients act upon."""
    headers = answer.headers()
    if answer.status == HTTPStatus.REQUEST_TIMEOUT:
        headers["connection"] = "close"  # What comes next on it would be taken for a new request.
    if answer.status == HTTPStatus.CONFLICT:
        headers["x-should-retry"] = "false"  # OpenAI's client would, and meet the same.
    return JSONResponse(answer.envelope(), status_code=answer.status, headers=headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return answer_with(error.answer)


async def _batch_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, BatchRefused)
    return answer_with(from_batch_refusal(error))


async def _unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, Unavailable)
    return answer_with(unavailable(error))


async def _bus_refused(request: Request, error: Exception) -> Response:
    """A bucket is full, or was lost this moment; that is the operator's to see and ours to tell."""
    _log.error("broker_refused", request_id=request_id_of(request), reason=str(error))
    refusal = Unavailable("the broker refuses for now", retry_after_ns=RETRY_AFTER_NS)
    return answer_with(unavailable(refusal))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "there is no such path", 405: "this path has other methods"}
    message = messages.get(error.status_code, HTTPStatus(error.status_code).phrase)
    response = answer_with(ErrorAnswer(status=error.status_code, message=message))
    response.headers.update(error.headers or {})
    return response


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE_STATUS)


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("request_crashed", request_id=request_id_of(request), exc_info=error)
    answer = ErrorAnswer(
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        message=f"internal error; see the gateway's log for request {request_id_of(request)}",
        type=SERVER_ERROR,
        code="internal_error",
    )
    return answer_with(answer)

"""What goes wrong, in OpenAI's words: a status and `{"error": {message, type, param, code}}`.

Messages are ours or a router's; nothing here repeats the caller's input or shows a traceback.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from pydantic import JsonValue, ValidationError

from libs.client.errors import RequestFailedError, RequestRefused
from libs.contracts.online import FailReason, RejectReason
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"
RETRY_AFTER_NS: Final = 1 * NS_PER_S

REJECTION_STATUS: Final[Mapping[RejectReason, HTTPStatus]] = {
    RejectReason.MALFORMED: HTTPStatus.BAD_REQUEST,
    RejectReason.INVALID: HTTPStatus.BAD_REQUEST,
    RejectReason.CONTEXT_LENGTH_EXCEEDED: HTTPStatus.BAD_REQUEST,
    RejectReason.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    RejectReason.MODEL_NOT_FOUND: HTTPStatus.NOT_FOUND,
    RejectReason.OVERLOADED: HTTPStatus.TOO_MANY_REQUESTS,
    RejectReason.NO_WORKER: HTTPStatus.SERVICE_UNAVAILABLE,
    RejectReason.RECOVERING: HTTPStatus.SERVICE_UNAVAILABLE,
    RejectReason.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}

FAILURE_STATUS: Final[Mapping[FailReason, HTTPStatus]] = {
    FailReason.EXPIRED: HTTPStatus.GATEWAY_TIMEOUT,
    FailReason.WORKERS_DIED: HTTPStatus.SERVICE_UNAVAILABLE,
    FailReason.CANCELLED: HTTPStatus.INTERNAL_SERVER_ERROR,
    FailReason.REFUSED: HTTPStatus.INTERNAL_SERVER_ERROR,
    FailReason.ENGINE_ERROR: HTTPStatus.INTERNAL_SERVER_ERROR,
}

OPEN_TABLES: Final = ("logit_bias",)
"""Fields whose keys are the caller's own, and so are not repeated."""
PARAMETER_NAMES: Final[Mapping[str, str]] = {"prompt_token_ids": "prompt"}
"""Fields of our messages that have another name in OpenAI's API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """One error as a caller sees it."""

    status: int
    message: str
    type: str = INVALID_REQUEST
    parameter: str | None = None
    code: str | None = None
    retry_after_ns: int | None = None

    def envelope(self) -> dict[str, JsonValue]:
        """Return the body."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.parameter,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Return when to try again, in the two forms that clients read."""
        if self.retry_after_ns is None:
            return {}
        return {
            "retry-after": str(max(1, math.ceil(self.retry_after_ns / NS_PER_S))),
            "retry-after-ms": str(math.ceil(self.retry_after_ns / NS_PER_MS)),
        }


class ApiError(Exception):
    """Ends the handling of an HTTP request with this answer."""

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(answer.message)
        self.answer = answer


def invalid(message: str, *, parameter: str | None = None, code: str | None = None) -> ApiError:
    """The caller's request cannot be served as it is."""
    return ApiError(
        ErrorAnswer(status=HTTPStatus.BAD_REQUEST, message=message, parameter=parameter, code=code)
    )


def model_not_found(name: str) -> ErrorAnswer:
    """Nobody serves this model. The name is shown, shortened, as OpenAI does."""
    return ErrorAnswer(
        status=HTTPStatus.NOT_FOUND,
        message=f"the model '{name[:100]}' does not exist",
        parameter="model",
        code=RejectReason.MODEL_NOT_FOUND,
    )


def from_exception(
    error: RequestRefused | RequestFailedError | Unavailable, *, prompt_parameter: str
) -> ErrorAnswer:
    """Tell a failure of the fleet; `prompt_parameter` is what this endpoint calls its prompt."""
    match error:
        case RequestRefused():
            return _from_refusal(error, prompt_parameter=prompt_parameter)
        case RequestFailedError():
            return ErrorAnswer(
                status=FAILURE_STATUS[error.reason],
                message=str(error),
                type=SERVER_ERROR,
                code=error.reason,
            )
        case Unavailable():
            return ErrorAnswer(
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                message=str(error),
                type=SERVER_ERROR,
                code=RejectReason.UNAVAILABLE,
                retry_after_ns=error.retry_after_ns,
            )


def _from_refusal(error: RequestRefused, *, prompt_parameter: str) -> ErrorAnswer:
    status = REJECTION_STATUS[error.reason]
    is_callers = status < HTTPStatus.TOO_MANY_REQUESTS
    parameter = error.parameter
    if parameter is None and error.reason is RejectReason.CONTEXT_LENGTH_EXCEEDED:
        parameter = prompt_parameter
    retry_after_ns = error.retry_after_ns
    if not is_callers and retry_after_ns is None:
        retry_after_ns = RETRY_AFTER_NS
    if status is HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    else:
        kind = INVALID_REQUEST if is_callers else SERVER_ERROR
    return ErrorAnswer(
        status=status,
        message=str(error),
        type=kind,
        parameter=PARAMETER_NAMES.get(parameter or "", parameter),
        code=error.reason,
        retry_after_ns=retry_after_ns,
    )


def from_validation(error: ValidationError) -> ApiError:
    """Tell the first wrong field, as `messages[0].content`, without repeating its value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return invalid("the body is not valid JSON", code="invalid_json")
    parameter = _path(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return invalid(f"{parameter}: {message}" if parameter else message, parameter=parameter)


def _path(location: tuple[int | str, ...]) -> str | None:
    path = ""
    for part in location:
        if path in OPEN_TABLES:
            break
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "sampling"):
            path += f".{part}" if path else PARAMETER_NAMES.get(part, part)
    return path or None

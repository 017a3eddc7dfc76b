"""What goes wrong with files and batches, in OpenAI's words."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from libs.client.batches import BatchRefused
from libs.contracts.batches import BatchRejectReason
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from libs.openai_api.errors import RETRY_AFTER_NS, SERVER_ERROR, ApiError, ErrorAnswer

_STATUS: Final[Mapping[BatchRejectReason, HTTPStatus]] = {
    BatchRejectReason.MALFORMED: HTTPStatus.BAD_REQUEST,
    BatchRejectReason.INVALID: HTTPStatus.BAD_REQUEST,
    BatchRejectReason.BATCH_NOT_FOUND: HTTPStatus.NOT_FOUND,
    BatchRejectReason.FILE_NOT_FOUND: HTTPStatus.NOT_FOUND,
    BatchRejectReason.CONFLICT: HTTPStatus.CONFLICT,
    BatchRejectReason.FULL: HTTPStatus.TOO_MANY_REQUESTS,
    BatchRejectReason.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}


def from_batch_refusal(error: BatchRefused) -> ErrorAnswer:
    """Tell why a queue, or the room for records, refuses."""
    status = _STATUS[error.reason]
    is_passing = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    retry_after_ns = error.retry_after_ns or RETRY_AFTER_NS
    return ErrorAnswer(
        status=status,
        message=str(error),
        parameter=error.parameter,
        code=error.reason,
        retry_after_ns=retry_after_ns if is_passing else None,
    )


def unavailable(error: Unavailable) -> ErrorAnswer:
    """The queue, the broker or the blob store is away for now."""
    return ErrorAnswer(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        message=str(error),
        type=SERVER_ERROR,
        code=BatchRejectReason.UNAVAILABLE,
        retry_after_ns=error.retry_after_ns or RETRY_AFTER_NS,
    )


def not_found(what: str, wanted_id: str, *, parameter: str | None = None) -> ApiError:
    """There is no such file or batch, or it is another tenant's. Its id is shown, shortened."""
    return ApiError(
        ErrorAnswer(
            status=HTTPStatus.NOT_FOUND,
            message=f"there is no {what} '{wanted_id[:64]}'",
            parameter=parameter,
            code=f"{what}_not_found",
        )
    )


def conflict(message: str) -> ApiError:
    """It cannot be done to a thing in this state."""
    return ApiError(
        ErrorAnswer(
            status=HTTPStatus.CONFLICT, message=message, code=BatchRejectReason.CONFLICT.value
        )
    )


def file_too_large(bytes_max: int) -> ApiError:
    """The file of a batch is larger than is taken."""
    return ApiError(
        ErrorAnswer(
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            message=f"the file is larger than {bytes_max:,} bytes",
            parameter="file",
            code="too_large",
        )
    )


def no_blob_store() -> ApiError:
    """The operator has given this gateway no place for files."""
    return ApiError(
        ErrorAnswer(
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            message="this gateway has no blob store: its operator sets `blob_store`",
            type=SERVER_ERROR,
            code="no_blob_store",
            retry_after_ns=60 * NS_PER_S,
        )
    )

"""Files, batches and lists of them, in OpenAI's fields; pure."""

from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue

from libs.contracts.batches import BatchRecord, FileRecord
from libs.openai_api.answer_form import JsonObject

BATCH_FIELDS: Final = ("id", "object", "endpoint", "input_file_id", "status", "created_at")
FILE_FIELDS: Final = ("id", "object", "bytes", "created_at", "filename", "purpose", "status")
LIST_FIELDS: Final = ("object", "data", "first_id", "last_id", "has_more")


def file_object(record: FileRecord) -> JsonObject:
    """Return the file as callers see it."""
    return {
        "id": record.file_id,
        "object": "file",
        "bytes": record.size_bytes,
        "created_at": record.created_at_unix_s,
        "expires_at": record.expires_at_unix_s,
        "filename": record.file_name,
        "purpose": record.purpose.value,
        "status": "processed",
        "status_details": None,
    }


def batch_object(record: BatchRecord) -> JsonObject:
    """Return the batch as callers see it; `is_paused` and `warning` are our own."""
    return {
        "id": record.batch_id,
        "object": "batch",
        "endpoint": record.endpoint,
        "model": record.alias,
        "errors": _errors(record),
        "input_file_id": record.input_file_id,
        "completion_window": record.completion_window,
        "status": record.status.value,
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "created_at": record.created_at_unix_s,
        "in_progress_at": record.in_progress_at_unix_s,
        "expires_at": record.deadline_at_unix_s,
        "finalizing_at": record.finalizing_at_unix_s,
        "completed_at": record.completed_at_unix_s,
        "failed_at": record.failed_at_unix_s,
        "expired_at": record.expired_at_unix_s,
        "cancelling_at": record.cancelling_at_unix_s,
        "cancelled_at": record.cancelled_at_unix_s,
        "request_counts": {
            "total": record.counts.total,
            "completed": record.counts.completed,
            "failed": record.counts.failed,
        },
        "usage": _usage(record),
        "metadata": dict(record.metadata) or None,
        "is_paused": record.is_paused,
        "warning": record.warning or None,
    }


def list_object(items: Sequence[JsonObject], *, has_more: bool) -> JsonObject:
    """Return a page; its last id is where the next begins."""
    return {
        "object": "list",
        "data": [dict(item) for item in items],
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def _errors(record: BatchRecord) -> JsonValue:
    if not record.errors:
        return None
    return {
        "object": "list",
        "data": [
            {
                "code": error.code,
                "line": error.line,
                "message": error.message,
                "param": error.parameter,
            }
            for error in record.errors
        ],
    }


def _usage(record: BatchRecord) -> JsonValue:
    return {
        "input_tokens": record.tokens_prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": record.tokens_generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": record.tokens_prompt + record.tokens_generated,
    }

"""How a BatchRecord changes: a table of statuses, and a pure function for each change.

    VALIDATING --> IN_PROGRESS --> FINALIZING --> COMPLETED, EXPIRED
        |  \\            |
        |   +----> CANCELLING -------------------> CANCELLED
        +--> FAILED (from any of these, if it cannot be worked on)

Every change is carried out by compare-and-set: read, `changed`, write if nobody wrote meanwhile.
A change that the table does not list leaves the record as it is.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, assert_never

from libs.contracts.batches import (
    BatchCounts,
    BatchRecord,
    BatchStatus,
    LineError,
    SubmitBatch,
)

WINDOW_S_MIN: Final = 1
WINDOW_S_MAX: Final = 30 * 86_400
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_ID_DIGEST_BYTES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """Every line can be asked, and the parts are in the stream."""

    alias: str
    lines: int
    tokens_predicted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """The file cannot be asked, or not read to its end."""

    errors: tuple[LineError, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAsked:
    """The user wants no more of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseAsked:
    """The user wants it to wait, or to go on."""

    is_paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """So many of its lines have ended by now, and this is what its deadline looks like."""

    completed: int
    failed: int
    warning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalizingBegun:
    """Nothing is taken up any more; its files are being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalized:
    """Its files are written."""

    counts: BatchCounts
    tokens_prompt: int
    tokens_generated: int
    output_file_id: str | None
    error_file_id: str | None


Change: TypeAlias = (
    Validated | Invalid | CancelAsked | PauseAsked | Counted | FinalizingBegun | Finalized
)

TRANSITIONS: Final[Mapping[BatchStatus, Mapping[type[Change], BatchStatus]]] = {
    BatchStatus.VALIDATING: {
        Validated: BatchStatus.IN_PROGRESS,
        Invalid: BatchStatus.FAILED,
        CancelAsked: BatchStatus.CANCELLING,
        PauseAsked: BatchStatus.VALIDATING,
    },
    BatchStatus.IN_PROGRESS: {
        Invalid: BatchStatus.FAILED,
        CancelAsked: BatchStatus.CANCELLING,
        PauseAsked: BatchStatus.IN_PROGRESS,
        Counted: BatchStatus.IN_PROGRESS,
        FinalizingBegun: BatchStatus.FINALIZING,
    },
    BatchStatus.FINALIZING: {
        Invalid: BatchStatus.FAILED,
        Finalized: BatchStatus.COMPLETED,
    },
    BatchStatus.CANCELLING: {
        Invalid: BatchStatus.FAILED,
        FinalizingBegun: BatchStatus.CANCELLING,
        Finalized: BatchStatus.CANCELLED,
    },
    BatchStatus.FAILED: {},
    BatchStatus.COMPLETED: {},
    BatchStatus.EXPIRED: {},
    BatchStatus.CANCELLED: {},
}


def window_s(completion_window: str) -> int | None:
    """Return the seconds in `24h`, `30m`, `45s` or `7d`; None if it is no such thing."""
    found = _WINDOW.fullmatch(completion_window)
    if found is None:
        return None
    length_s = int(found[1]) * _UNIT_S[found[2]]
    return length_s if WINDOW_S_MIN <= length_s <= WINDOW_S_MAX else None


def new_record(question: SubmitBatch, *, window: int, now_unix_s: int) -> BatchRecord:
    """Return the record of a batch that was just asked for."""
    return BatchRecord(
        batch_id=question.batch_id,
        input_file_id=question.input_file_id,
        endpoint=question.endpoint,
        completion_window=question.completion_window,
        metadata=question.metadata,
        tenant=question.tenant,
        output_expires_after_s=question.output_expires_after_s,
        deadline_at_unix_s=now_unix_s + window,
        created_at_unix_s=now_unix_s,
    )


def is_same_question(record: BatchRecord, question: SubmitBatch) -> bool:
    """Whether the record came from this question; a repeat of it is then answered as the first."""
    names = ("input_file_id", "endpoint", "completion_window", "metadata", "tenant")
    return all(getattr(record, name) == getattr(question, name) for name in names)


def changed(record: BatchRecord, change: Change, *, now_unix_s: int) -> BatchRecord:
    """Return the record after the change; the same one if it changes nothing."""
    status = TRANSITIONS[record.status].get(type(change))
    if status is None:
        return record
    fields = _fields(record, change, now_unix_s)
    if isinstance(change, Finalized) and _is_expired(record, change):
        status = BatchStatus.EXPIRED
        fields["expired_at_unix_s"] = now_unix_s
    elif isinstance(change, Finalized) and status is BatchStatus.COMPLETED:
        fields["completed_at_unix_s"] = now_unix_s
    after = record.model_copy(update={**fields, "status": status})
    return record if after == record else after


def _is_expired(record: BatchRecord, change: Finalized) -> bool:
    ended = change.counts.completed + change.counts.failed
    return record.status is BatchStatus.FINALIZING and ended < change.counts.total


def _fields(record: BatchRecord, change: Change, now_unix_s: int) -> dict[str, Any]:
    match change:
        case Validated():
            return {
                "alias": change.alias,
                "counts": BatchCounts(total=change.lines),
                "tokens_predicted": change.tokens_predicted,
                "in_progress_at_unix_s": now_unix_s,
            }
        case Invalid():
            return {"errors": change.errors, "failed_at_unix_s": now_unix_s}
        case CancelAsked():
            return {"cancelling_at_unix_s": now_unix_s}
        case PauseAsked():
            return {"is_paused": change.is_paused}
        case Counted():
            return {"counts": _grown(record.counts, change), "warning": change.warning}
        case FinalizingBegun():
            return {"finalizing_at_unix_s": record.finalizing_at_unix_s or now_unix_s}
        case Finalized():
            is_cancelled = record.status is BatchStatus.CANCELLING
            return {
                "counts": change.counts,
                "tokens_prompt": change.tokens_prompt,
                "tokens_generated": change.tokens_generated,
                "output_file_id": change.output_file_id,
                "error_file_id": change.error_file_id,
                "cancelled_at_unix_s": now_unix_s if is_cancelled else None,
            }
        case _:
            assert_never(change)


def _grown(counts: BatchCounts, change: Counted) -> BatchCounts:
    """What was counted later is not less; a line that was stored twice is not two."""
    completed = min(max(counts.completed, change.completed), counts.total)
    failed = min(max(counts.failed, change.failed), counts.total - completed)
    return BatchCounts(total=counts.total, completed=completed, failed=failed)


def result_file_id(record: BatchRecord, kind: str) -> str:
    """Return the id of the batch's output or error file.

    A function of the record, so that whoever writes the file again writes the same one; it begins
    with the time in milliseconds, as all ids of files do.
    """
    name = f"{record.batch_id}/{kind}".encode()
    digest = hashlib.blake2b(name, digest_size=_ID_DIGEST_BYTES).hexdigest()
    return f"file-{1000 * (record.finalizing_at_unix_s or 0):012x}{digest}"

"""Rebuild the sessions of a journal from its records: a pure fold, the inverse of writing it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from libs.contracts.journal import (
    JournalClosed,
    JournalRecord,
    JournalTakenOver,
    SessionDispatched,
    SessionFailed,
    SessionOpened,
)
from libs.contracts.online import FinishReason, TokenLogprobs
from libs.contracts.token_step import SessionTokens
from libs.kernel.core import require


@dataclass(slots=True, kw_only=True)
class ReplayedSession:
    """A session as its journal leaves it."""

    opened: SessionOpened
    session_epoch: int
    worker_id: str
    token_ids: list[int]
    texts: list[str]
    logprobs: list[TokenLogprobs]
    finish_reason: FinishReason | None = None
    failure: SessionFailed | None = None


@dataclass(slots=True, kw_only=True)
class ReplayedJournal:
    """What a journal says: its sessions, by request id, and who owns it."""

    sessions: dict[str, ReplayedSession] = field(default_factory=dict)
    taken_over: JournalTakenOver | None = None
    is_closed: bool = False


def replay(records: Iterable[JournalRecord]) -> ReplayedJournal:
    """Fold the records in order.

    Records of a session whose opening was purged belong to one that ended and was forgotten; they
    are skipped. A later opening replaces what came before: it carries the tokens itself.
    """
    journal = ReplayedJournal()
    for record in records:
        match record:
            case SessionOpened():
                journal.sessions[record.spec.request_id] = _opened(record)
            case SessionDispatched() if record.request_id in journal.sessions:
                session = journal.sessions[record.request_id]
                session.session_epoch = record.session_epoch
                session.worker_id = record.worker_id
            case SessionTokens() if record.request_id in journal.sessions:
                _apply_tokens(journal.sessions[record.request_id], record)
            case SessionFailed() if record.request_id in journal.sessions:
                journal.sessions[record.request_id].failure = record
            case SessionDispatched() | SessionTokens() | SessionFailed():
                pass
            case JournalTakenOver():
                journal.taken_over = record
            case JournalClosed():
                journal.is_closed = True
            case _:
                assert_never(record)
    return journal


def _opened(record: SessionOpened) -> ReplayedSession:
    return ReplayedSession(
        opened=record,
        session_epoch=record.session_epoch,
        worker_id=record.worker_id,
        token_ids=list(record.generated_token_ids),
        texts=list(record.generated_texts),
        logprobs=list(record.generated_logprobs),
    )


def _apply_tokens(session: ReplayedSession, record: SessionTokens) -> None:
    known = len(session.token_ids) - record.first_index
    require(known >= 0, f"journal of {record.request_id} skips tokens")
    session.token_ids.extend(record.token_ids[known:])
    session.texts.extend(record.texts[known:])
    session.logprobs.extend(record.logprobs[known:])
    session.finish_reason = record.finish_reason or session.finish_reason

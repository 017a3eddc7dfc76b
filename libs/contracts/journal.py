"""The token journal: what a router must have written before it says it.

One JetStream subject per router process; each batch is appended with the sequence of the batch
before it, so that a router that was taken over fails at its next append. Reading a journal from
its start rebuilds every session in it.

    [tag, [[code, fields..], ..]]

Sent by a router to its own journal (and, as JournalTakenOver and JournalClosed, to the journal of
a dead one). Read by the router that takes it over. An append whose answer is lost is resolved by
reading the last message: its message id tells whose it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, assert_never

import msgpack

from libs.contracts.online import FailReason, TokenLogprobs
from libs.contracts.sessions import SessionSpec
from libs.contracts.token_step import (
    SessionTokens,
    are_tokens,
    pack_logprobs,
    pack_session_tokens,
    unpack_logprobs,
    unpack_session_tokens,
)
from libs.contracts.wire import Codec, Encoding, unpack
from libs.kernel.errors import ContractViolation

TAG: Final = "journal_batch.v1"

SCORED_TOKEN_BYTES: Final = 64
"""Upper estimate of one packed ScoredToken; the text of one token is short."""

_SPECS: Codec[SessionSpec] = Codec(SessionSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """This journal owns the session from here on, with these tokens already generated.

    Written on acceptance (no tokens), on adoption from another journal, and again where a
    long-lived session would keep the journal from being shortened.
    """

    spec: SessionSpec
    reply_to: str
    encoding: Encoding
    session_epoch: int
    worker_id: str
    """Empty: no worker had room yet."""
    expires_at_unix_ns: int | None
    generated_token_ids: tuple[int, ...] = ()
    generated_texts: tuple[str, ...] = ()
    generated_logprobs: tuple[TokenLogprobs, ...] = ()
    """One per generated token, or empty where the request did not ask for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDispatched:
    """The session goes to another worker under a new epoch; written before the dispatch."""

    request_id: str
    session_epoch: int
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFailed:
    """The session ended without a full answer."""

    request_id: str
    reason: FailReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalTakenOver:
    """From here on the journal belongs to the router that owns journal `by_journal_id`."""

    by_router_id: str
    by_journal_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalClosed:
    """Every live session of this journal is durable in `by_journal_id`; nothing follows."""

    by_journal_id: str


JournalRecord = (
    SessionOpened
    | SessionDispatched
    | SessionTokens
    | SessionFailed
    | JournalTakenOver
    | JournalClosed
)


def pack_batch(records: Sequence[JournalRecord]) -> bytes:
    """Serialise; the inverse of `unpack_batch`."""
    packed: bytes = msgpack.packb((TAG, [_pack_record(record) for record in records]))
    return packed


def unpack_batch(payload: bytes) -> tuple[JournalRecord, ...]:
    """Parse and check every record. Raises: ContractViolation on any other shape."""
    match unpack(payload):
        case [str(tag), list(records)] if tag == TAG:
            return tuple(_unpack_record(record) for record in records)
        case _:
            raise ContractViolation(f"not a {TAG} message")


def record_bytes_estimate(record: JournalRecord) -> int:
    """An upper estimate of the packed size, cheap enough for every record."""
    match record:
        case SessionTokens():
            tokens_bytes = 5 * len(record.token_ids) + _text_bytes(record.texts)
            return 96 + tokens_bytes + _logprobs_bytes(record.logprobs)
        case SessionOpened():
            spec = record.spec
            tokens = len(spec.prompt_token_ids) + len(record.generated_token_ids)
            texts_bytes = _text_bytes(record.generated_texts) + _text_bytes(spec.stop)
            bias_bytes = 16 * len(spec.sampling.logit_bias)
            schema_bytes = 4 * len(spec.answer_schema or "")
            logprobs_bytes = _logprobs_bytes(record.generated_logprobs)
            return 1024 + 5 * tokens + texts_bytes + bias_bytes + schema_bytes + logprobs_bytes
        case SessionFailed():
            return 160 + 4 * len(record.message)
        case SessionDispatched() | JournalTakenOver() | JournalClosed():
            return 320
        case _:
            assert_never(record)


def _logprobs_bytes(logprobs: Sequence[TokenLogprobs]) -> int:
    return SCORED_TOKEN_BYTES * sum(item.scored_tokens for item in logprobs)


def _text_bytes(texts: Sequence[str]) -> int:
    return sum(5 + 4 * len(text) for text in texts)


def _pack_record(record: JournalRecord) -> tuple[Any, ...]:
    match record:
        case SessionTokens() as r:
            return ("t", pack_session_tokens(r))
        case SessionOpened() as r:
            return (
                "o",
                msgpack.packb(r.spec.model_dump(mode="json", exclude_none=True)),
                r.reply_to,
                r.encoding,
                r.session_epoch,
                r.worker_id,
                r.expires_at_unix_ns,
                r.generated_token_ids,
                r.generated_texts,
                *([pack_logprobs(r.generated_logprobs)] if r.generated_logprobs else []),
            )
        case SessionDispatched() as r:
            return ("d", r.request_id, r.session_epoch, r.worker_id)
        case SessionFailed() as r:
            return ("f", r.request_id, r.reason, r.message)
        case JournalTakenOver() as r:
            return ("x", r.by_router_id, r.by_journal_id)
        case JournalClosed() as r:
            return ("c", r.by_journal_id)
        case _:
            assert_never(record)


def _unpack_record(record: Any) -> JournalRecord:
    try:
        return _match_record(record)
    except (ValueError, TypeError) as error:
        raise ContractViolation(f"malformed journal record: {error}") from error


def _match_record(record: Any) -> JournalRecord:
    match record:
        case ["t", entry]:
            return unpack_session_tokens(entry)
        case [
            "o", bytes(spec), str(), str(), int(epoch), str(), None | int(), list(ids), list(texts),
            *rest,
        ] if epoch >= 1 and are_tokens(ids, texts):  # fmt: skip
            return SessionOpened(
                spec=_SPECS.decode(spec),
                reply_to=record[2],
                encoding=Encoding(record[3]),
                session_epoch=record[4],
                worker_id=record[5],
                expires_at_unix_ns=record[6],
                generated_token_ids=tuple(ids),
                generated_texts=tuple(texts),
                generated_logprobs=unpack_logprobs(rest, tokens=len(ids)),
            )
        case ["d", str(request_id), int(epoch), str(worker_id)] if epoch >= 1:
            return SessionDispatched(
                request_id=request_id, session_epoch=epoch, worker_id=worker_id
            )
        case ["f", str(request_id), str(reason), str(message)]:
            return SessionFailed(request_id=request_id, reason=FailReason(reason), message=message)
        case ["x", str(router_id), str(journal_id)]:
            return JournalTakenOver(by_router_id=router_id, by_journal_id=journal_id)
        case ["c", str(journal_id)]:
            return JournalClosed(by_journal_id=journal_id)
        case _:
            raise ContractViolation("malformed journal record")

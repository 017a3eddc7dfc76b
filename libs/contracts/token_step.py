"""The hot message: all tokens of one engine step that go to one router, in one message.

Packed as msgpack arrays without a model per token:

    [tag, worker_id, step_id, [[request_id, session_epoch, first_index, [token_id..], [text..],
                                finish_reason | nil], ..]]

Sent by a worker to `router_tokens(router_id)` after every step, and again for what is not
acknowledged in time. Handled by the router that owns the sessions. Lost: the worker sends the
tokens again, or the router sees a gap in the indices and asks. Doubled: known indices are
dropped. Late: entries of an older session_epoch are dropped and counted.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgpack

from libs.contracts.online import FinishReason
from libs.contracts.wire import unpack
from libs.kernel.errors import ContractViolation

TAG: Final = "token_step.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTokens:
    """New tokens of one session: index `first_index + i` is token_ids[i], which adds texts[i]."""

    request_id: str
    session_epoch: int
    first_index: int
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStep:
    """What one worker has for one router after one step."""

    worker_id: str
    step_id: int
    entries: tuple[SessionTokens, ...]


def pack_step(step: TokenStep) -> bytes:
    """Serialise; the inverse of `unpack_step`."""
    entries = [
        (e.request_id, e.session_epoch, e.first_index, e.token_ids, e.texts, e.finish_reason)
        for e in step.entries
    ]
    packed: bytes = msgpack.packb((TAG, step.worker_id, step.step_id, entries))
    return packed


def unpack_step(payload: bytes) -> TokenStep:
    """Parse and check every field.

    Raises: ContractViolation on any other shape, so that a wrong peer cannot harm the router.
    """
    match unpack(payload):
        case [str(tag), str(worker_id), int(step_id), list(entries)] if tag == TAG:
            checked = tuple(unpack_session_tokens(entry) for entry in entries)
            return TokenStep(worker_id=worker_id, step_id=step_id, entries=checked)
        case _:
            raise ContractViolation(f"not a {TAG} message")


def unpack_session_tokens(entry: Any) -> SessionTokens:
    """Check one entry of a step or of the journal."""
    match entry:
        case [
            str(request_id),
            int(session_epoch),
            int(first_index),
            list(token_ids),
            list(texts),
            (None | str()) as finish_reason,
        ] if (
            type(session_epoch) is int
            and session_epoch >= 1
            and first_index >= 0
            and are_tokens(token_ids, texts)
        ):
            return SessionTokens(
                request_id=request_id,
                session_epoch=session_epoch,
                first_index=first_index,
                token_ids=tuple(token_ids),
                texts=tuple(texts),
                finish_reason=_finish_reason(finish_reason),
            )
        case _:
            raise ContractViolation("malformed session tokens")


def are_tokens(token_ids: list[Any], texts: list[Any]) -> bool:
    """Whether these are as many token ids as texts, each of its type (a bool is no id)."""
    return (
        len(token_ids) == len(texts)
        and all(type(t) is int and t >= 0 for t in token_ids)
        and all(type(t) is str for t in texts)
    )


def _finish_reason(value: str | None) -> FinishReason | None:
    if value is None:
        return None
    try:
        return FinishReason(value)
    except ValueError as error:
        raise ContractViolation("unknown finish_reason") from error

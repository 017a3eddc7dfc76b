"""The hot message: all tokens of one engine step that go to one router, in one message.

Packed as msgpack arrays without a model per token:

    [tag, worker_id, step_id, [[request_id, session_epoch, first_index, [token_id..], [text..],
                                finish_reason | nil, logprobs?], ..]]

`logprobs` stands only where the request asked for them: one [chosen, [best, ..]] per token, each
of them [token_id, text, logprob]; those of a prompt, where asked for, follow in the first one's
list in the same form.

Sent by a worker to `router_tokens(router_id)` after every step, and again for what is not
acknowledged in time. Handled by the router that owns the sessions. Lost: the worker sends the
tokens again, or the router sees a gap in the indices and asks. Doubled: known indices are
dropped. Late: entries of an older session_epoch are dropped and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
from pydantic import ValidationError

from libs.contracts.online import FinishReason, ScoredToken, TokenLogprobs
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
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token, or empty where the request did not ask for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStep:
    """What one worker has for one router after one step."""

    worker_id: str
    step_id: int
    entries: tuple[SessionTokens, ...]


def pack_step(step: TokenStep) -> bytes:
    """Serialise; the inverse of `unpack_step`."""
    entries = [pack_session_tokens(entry) for entry in step.entries]
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


def pack_session_tokens(entry: SessionTokens) -> tuple[Any, ...]:
    """Return one entry of a step or of the journal as nested tuples."""
    packed = (
        entry.request_id,
        entry.session_epoch,
        entry.first_index,
        entry.token_ids,
        entry.texts,
        entry.finish_reason,
    )
    if not entry.logprobs:
        return packed
    return (*packed, pack_logprobs(entry.logprobs))


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
            *rest,
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
                logprobs=unpack_logprobs(rest, tokens=len(token_ids)),
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


def pack_logprobs(items: Sequence[TokenLogprobs]) -> list[Any]:
    """Return log probabilities as nested tuples, one per token."""
    return [_pack_token_logprobs(item) for item in items]


def _pack_token_logprobs(item: TokenLogprobs) -> tuple[Any, ...]:
    packed = (_pack_scored(item.chosen), [_pack_scored(best) for best in item.best])
    return (*packed, pack_logprobs(item.prompt)) if item.prompt else packed


def _pack_scored(scored: ScoredToken) -> tuple[int, str, float]:
    return scored.token_id, scored.text, scored.logprob


def unpack_logprobs(rest: list[Any], *, tokens: int) -> tuple[TokenLogprobs, ...]:
    """Read what follows the known fields: nothing, or one item per token."""
    match rest:
        case []:
            return ()
        case [list(items), *_] if len(items) == tokens:
            return tuple(_unpack_token_logprobs(item) for item in items)
        case _:
            raise ContractViolation("malformed logprobs")


def _unpack_token_logprobs(item: Any) -> TokenLogprobs:
    match item:
        case [chosen, list(best)]:
            return _scores(chosen, best)
        case [chosen, list(best), list(prompt), *_]:
            return _scores(chosen, best, prompt=tuple(_unpack_prompt_token(i) for i in prompt))
        case _:
            raise ContractViolation("malformed logprobs")


def _unpack_prompt_token(item: Any) -> TokenLogprobs:
    match item:
        case [chosen, list(best), *_]:
            return _scores(chosen, best)
        case _:
            raise ContractViolation("malformed logprobs")


def _scores(
    chosen: Any, best: list[Any], *, prompt: tuple[TokenLogprobs, ...] = ()
) -> TokenLogprobs:
    try:
        return TokenLogprobs(
            chosen=_unpack_scored(chosen),
            best=tuple(_unpack_scored(item) for item in best),
            prompt=prompt,
        )
    except ValidationError as error:
        raise ContractViolation("malformed logprobs") from error


def _unpack_scored(item: Any) -> ScoredToken:
    match item:
        case [int(token_id), str(text), (int() | float()) as logprob]:
            return ScoredToken(token_id=token_id, text=text, logprob=logprob)
        case _:
            raise ContractViolation("malformed logprobs")


def _finish_reason(value: str | None) -> FinishReason | None:
    if value is None:
        return None
    try:
        return FinishReason(value)
    except ValueError as error:
        raise ContractViolation("unknown finish_reason") from error

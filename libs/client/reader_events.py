"""What a StreamReader is told, what it asks for, and how a stream may end."""

from dataclasses import dataclass
from typing import TypeAlias

from libs.contracts.online import (
    RejectReason,
    RequestFailed,
    RequestFinished,
    RequestRejected,
    TokenLogprobs,
)
from libs.contracts.online import ToClient as Answer
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.units import NS_PER_MS, NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderOptions:
    """How patient one stream is. Durations in nanoseconds."""

    acceptance_wait_ns: int = 30 * NS_PER_S
    """The longest a stream waits to be accepted; then it ends, and says why as far as known."""
    accept_repeat_after_ns: int = 1 * NS_PER_S
    """An unanswered submission is published again after this long."""
    unheard_repeat_after_ns: int = 250 * NS_PER_MS
    """Pause after the broker said that nobody listens, or was away."""
    repeat_after_ns: int = 1_500 * NS_PER_MS
    """An accepted stream silent this long asks again; each time in vain doubles it."""
    repeat_after_ns_max: int = 6 * NS_PER_S
    """Where the doubling ends. Routers resume by themselves: asking covers lost messages only."""
    gap_repeat_after_ns: int = 250 * NS_PER_MS
    """The pause between two submissions that ask for missing tokens; what was sent before the
    first took effect still arrives, and shows the same gap."""
    silence_max_ns: int = 60 * NS_PER_S
    """An accepted stream whose owner stays silent this long, asked all the while, ends."""
    tokens_buffered_max: int = 8192
    """Tokens held for a slow consumer; later ones are dropped, and asked for when there is room."""
    reasons_not_retried: frozenset[RejectReason] = frozenset()
    """Rejections that end the stream although their router offers to retry."""

    def __post_init__(self) -> None:
        assert 0 < self.repeat_after_ns <= self.repeat_after_ns_max < self.silence_max_ns
        assert self.accept_repeat_after_ns > 0
        assert self.gap_repeat_after_ns > 0
        assert self.unheard_repeat_after_ns > 0
        assert self.tokens_buffered_max > 0


# What it is told.


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened:
    """The user wants the answer; comes first and once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReceived:
    """A router's message on the inbox; may be doubled, out of order, or another request's."""

    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionUnheard:
    """A submission reached nobody: no router listens, or the broker is away."""

    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensTaken:
    """The consumer has taken all tokens below `next_index` out of the buffer."""

    next_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLeft:
    """The consumer does not want the rest."""


ReaderEvent: TypeAlias = (
    StreamOpened | AnswerReceived | SubmissionUnheard | TokensTaken | StreamLeft | TimerFired
)


# How a stream may end.


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """Nobody answered in time; whether the request runs is unknown."""

    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The consumer left before the end."""


Outcome: TypeAlias = RequestFinished | RequestFailed | RequestRejected | GaveUp | Left


# What it asks for.


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Publish the submission, saying how many tokens have been received."""

    tokens_received: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Tell the routers that nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginAnswer:
    """The request is accepted; comes at most once, before the first token.

    `prompt_tokens` is None where the acceptance itself was lost and a later message stood for it.
    """

    prompt_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverTokens:
    """The next tokens for the consumer, in order, each exactly once."""

    first_index: int
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token, or none at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndStream:
    """The stream is over; comes exactly once, last."""

    outcome: Outcome


ReaderCommand: TypeAlias = Submit | Cancel | BeginAnswer | DeliverTokens | EndStream | SetTimer

"""What became of a request: how it ended and when each of its tokens came."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise


class Outcome(StrEnum):
    """How a request ended, as its client can prove."""

    OK = "ok"
    """A whole answer: finish reason, end mark and token counts agree with what was received."""
    REJECTED = "rejected"
    """Refused before any work was done, with a reason."""
    FAILED = "failed"
    """The server said plainly that it could not, or did not answer in time."""
    BROKEN = "broken"
    """Something that looks like an answer and is none: cut, incomplete or contradicting itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The outcome with its reason: a short word for counting, and a sentence for people."""

    outcome: Outcome
    reason: str = ""
    """Empty for an answer that ended well."""
    explanation: str = ""
    finish_reason: str | None = None


@dataclass(slots=True)
class Observation:
    """What a client has seen of one answer so far; written by it while the answer comes."""

    token_at_ns: "array[int]" = field(default_factory=lambda: array("q"))
    """When each token came, on the client's clock; tokens of one message came together."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    """As the end of the answer reports them."""
    request_id: str = ""
    """Under which the server's logs know the request, where it told."""

    def see_tokens(self, count: int, *, now_ns: int) -> None:
        """Note tokens that came just now."""
        self.token_at_ns.extend([now_ns] * count)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request of a run. Instants count from the start of the run."""

    index: int
    planned_at_ns: int
    """When it should have been sent; in a closed loop, when it was."""
    sent_at_ns: int
    ended_at_ns: int
    token_at_ns: Sequence[int]
    prompt_tokens: int | None
    output_tokens: int
    """Tokens received; as the answer reports where it came in larger pieces."""
    request_id: str
    ending: Ending

    @property
    def lateness_ns(self) -> int:
        """By how much the generator itself was late."""
        return self.sent_at_ns - self.planned_at_ns

    @property
    def ttft_ns(self) -> int | None:
        """From sending to the first token; None if there was none."""
        return self.token_at_ns[0] - self.sent_at_ns if self.token_at_ns else None

    @property
    def end_to_end_ns(self) -> int:
        """From sending to the end of the answer."""
        return self.ended_at_ns - self.sent_at_ns

    @property
    def tpot_ns(self) -> int | None:
        """Mean time per token after the first; None for fewer than two tokens."""
        if self.output_tokens < 2 or len(self.token_at_ns) < 1:
            return None
        return (self.token_at_ns[-1] - self.token_at_ns[0]) // (self.output_tokens - 1)

    def gaps_ns(self) -> list[int]:
        """Return the time between each two consecutive tokens (TBT), 0 where they came together."""
        return [later - earlier for earlier, later in pairwise(self.token_at_ns)]


@dataclass(slots=True)
class RunResult:
    """What a run did. Readable while it runs."""

    records: list[RequestRecord] = field(default_factory=list)
    """In the order in which the requests ended."""
    requests_unsent: int = 0
    """Arrivals that found `streams_open_max` streams open: the load offered was not sent."""
    streams_open: int = 0
    streams_open_most: int = 0
    duration_ns: int = 0
    """From the start to the end of the last request."""
    is_interrupted: bool = False
    """Whether somebody stopped it before its end."""

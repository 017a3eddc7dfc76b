"""The requests of a run: arrivals joined with lengths and prompts, made one at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from libs.kernel.rng import Rng
from loadgen.lengths import LengthLimits, Lengths
from loadgen.prompts import TokenPrompts, text_of
from loadgen.traces.requests import TraceRequest

SEED_BITS = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """One request to send. `arrival_ns` counts from the start of the run."""

    index: int
    arrival_ns: int
    prompt: str | tuple[int, ...]
    """Text, or token ids."""
    output_tokens: int
    """How many tokens to ask for at most; exactly this many where the end token is ignored."""
    seed: int
    """Of the sampling; drawn from the run's seed."""


@dataclass(slots=True)
class WorkloadTally:
    """What had to be changed to fit a trace to the model; grows while the requests are made."""

    requests_shortened: int = 0
    """Requests whose prompt or answer a limit cut, beyond the divisor."""
    requests_skipped: int = 0
    """Requests of the trace that have no prompt or no answer: they failed when recorded."""


class Workload:
    """Makes the requests of a run from a source of arrivals with lengths."""

    def __init__(
        self,
        *,
        rng: Rng,
        make_prompt: Callable[[TraceRequest, int], str | tuple[int, ...]],
        limits: LengthLimits,
    ) -> None:
        self.tally = WorkloadTally()
        self._rng = rng
        self._make_prompt = make_prompt
        self._limits = limits

    def requests(self, recorded: Iterable[TraceRequest]) -> Iterator[LoadRequest]:
        """Yield the requests, numbered from 0, as slowly as they are taken."""
        index = 0
        unlimited = LengthLimits(divisor=self._limits.divisor)
        for original in recorded:
            lengths = self._limits.fit(original.lengths)
            if not lengths.prompt_tokens or not lengths.output_tokens:
                self.tally.requests_skipped += 1
                continue
            if lengths != unlimited.fit(original.lengths):
                self.tally.requests_shortened += 1
            fitted = TraceRequest(
                arrival_ns=original.arrival_ns, lengths=lengths, block_ids=original.block_ids
            )
            yield LoadRequest(
                index=index,
                arrival_ns=original.arrival_ns,
                prompt=self._make_prompt(fitted, index),
                output_tokens=lengths.output_tokens,
                seed=self._rng.child(f"request/{index}").getrandbits(SEED_BITS),
            )
            index += 1


def joined(arrivals: Iterable[int], lengths: Iterator[Lengths]) -> Iterator[TraceRequest]:
    """Yield one request per arrival, with the next lengths; ends with the shorter of the two."""
    for arrival_ns, drawn in zip(arrivals, lengths, strict=False):
        yield TraceRequest(arrival_ns=arrival_ns, lengths=drawn)


def token_id_prompts(prompts: TokenPrompts) -> Callable[[TraceRequest, int], tuple[int, ...]]:
    """Return a maker of prompts of token ids that share prefixes as their block ids say."""

    def make(request: TraceRequest, index: int) -> tuple[int, ...]:
        tokens = request.lengths.prompt_tokens
        return prompts.make(str(index), tokens=tokens, block_ids=request.block_ids)

    return make


def text_prompts(
    rng: Rng, *, count_tokens: Callable[[str], int]
) -> Callable[[TraceRequest, int], str]:
    """Return a maker of texts of the wanted length as this counter counts; prefixes differ."""

    def make(request: TraceRequest, index: int) -> str:
        own = rng.child(f"text/{index}")
        return text_of(own, tokens=request.lengths.prompt_tokens, count_tokens=count_tokens)

    return make

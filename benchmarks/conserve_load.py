"""What the simulated comparison with ConServe sends: two online traces, two offline backlogs.

Arrivals and lengths are drawn from the statistics of published traces, or read from a file, to be
replayed at whatever speed the benchmark chooses.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from benchmarks.coserve_load import LoadOptions, online_trace
from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from loadgen.arrivals import poisson
from loadgen.lengths import LengthLimits, Lengths, uniform
from loadgen.prompts import TokenPrompts, TokenRange
from loadgen.traces.detect import read_requests
from loadgen.traces.requests import TraceRequest
from services.simulator.coserve.requests import CoserveRequest

OUTPUT_TOKENS_MAX: Final = 1_024

QUANTILES: Final = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
MOONCAKE_PER_S: Final = 3.907
MOONCAKE_PROMPTS: Final = (
    13, 22, 30, 88, 913, 4_365, 11_587, 16_289, 19_407, 28_430, 38_615, 48_835, 66_456, 191_378,
)  # fmt: skip
MOONCAKE_OUTPUTS: Final = (1, 2, 4, 8, 16, 32, 69, 126, 210, 289, 389, 519, 768, 893)
"""Tokens at those quantiles; arrivals are those of a Poisson process, near enough (CV 1.01).
Source: kvcache-ai/Mooncake, FAST25 release, synthetic trace. Prefixes are shared only by a file."""
SHAREGPT_PROMPTS: Final = (
    1, 29, 74, 382, 777, 1_203, 1_730, 2_401, 3_235, 4_278, 5_696, 6_563, 7_434, 8_141,
)  # fmt: skip
SHAREGPT_OUTPUTS: Final = (2, 44, 84, 181, 271, 346, 415, 493, 581, 683, 834, 920, 998, 1_024)
"""Source: microsoft/sarathi-serve, ShareGPT conversations of at most 8 K tokens; prompt and answer
are next to uncorrelated (0.04)."""
LONG_TEXTS: Final = (
    Lengths(prompt_tokens=2_048, output_tokens=128),
    Lengths(prompt_tokens=16_384, output_tokens=512),
)
"""Least and most: the range in which ConServe pays by its own account; LongBench's lie in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConserveLoad:
    """What is sent in one cell."""

    workload: str = "azure-code"
    trace: Path | None = None
    """Published trace in place of what `workload` would make up."""
    offline: str = "sharegpt"
    requests: int = 400
    """Online ones, the first of the trace."""
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What prompts have to fit."""

    context_tokens_max: int
    vocabulary_size: int

    @property
    def lengths(self) -> LengthLimits:
        """Cuts answers first, so that a prompt never fills the context alone."""
        output_tokens_max = min(OUTPUT_TOKENS_MAX, self.context_tokens_max // 4)
        return LengthLimits(
            prompt_tokens_max=self.context_tokens_max - output_tokens_max - 1,
            output_tokens_max=output_tokens_max,
        )

    def prompts(self, rng: Rng) -> TokenPrompts:
        """Draw prompts of any of its tokens."""
        return TokenPrompts(rng, TokenRange(token_id_min=0, token_id_max=self.vocabulary_size - 1))


def online_requests(load: ConserveLoad, bounds: Bounds) -> tuple[CoserveRequest, ...]:
    """Return requests at the trace's own speed, cut to fit.

    Raises: TraceError that names the line; ConfigError for an unknown name or too few requests.
    """
    trace = _trace(load)
    if len(trace) < load.requests:
        raise ConfigError(f"--requests: the trace has {len(trace)}")
    prompts = bounds.prompts(Rng(load.seed).child("online prompts"))
    requests = []
    for index, recorded in enumerate(trace[: load.requests]):
        fitted = bounds.lengths.fit(recorded.lengths)
        prompt = prompts.make(f"{index}", tokens=fitted.prompt_tokens, block_ids=recorded.block_ids)
        requests.append(
            CoserveRequest(
                request_id=f"online-{index}",
                prompt=prompt,
                output_tokens=fitted.output_tokens,
                arrival_ns=recorded.arrival_ns,
            )
        )
    return tuple(requests)


def offline_backlog(load: ConserveLoad, bounds: Bounds) -> Iterator[CoserveRequest]:
    """Yield offline requests for ever. Raises: ConfigError if nothing has that name."""
    if load.offline not in OFFLINE:
        raise ConfigError(f"--offline: {load.offline!r} is none of {', '.join(OFFLINE)}")
    rng = Rng(load.seed).child("offline")
    prompts = bounds.prompts(rng.child("prompts"))
    for index, drawn in enumerate(OFFLINE[load.offline](rng.child("lengths"))):
        fitted = bounds.lengths.fit(drawn)
        yield CoserveRequest(
            request_id=f"offline-{index}",
            prompt=prompts.make(f"{index}", tokens=fitted.prompt_tokens),
            output_tokens=fitted.output_tokens,
        )


def _trace(load: ConserveLoad) -> Sequence[TraceRequest]:
    if load.trace is not None:
        recorded = (r for r in read_requests(load.trace) if _is_whole(r))
        return list(islice(recorded, load.requests))
    if load.workload not in WORKLOADS:
        raise ConfigError(f"--workload: {load.workload!r} is none of {', '.join(WORKLOADS)}")
    drawn = WORKLOADS[load.workload](Rng(load.seed).child("online"), load.requests)
    return list(drawn)


def _is_whole(request: TraceRequest) -> bool:
    return request.lengths.prompt_tokens > 0 and request.lengths.output_tokens > 0


def _azure_code(rng: Rng, requests: int) -> Sequence[TraceRequest]:
    return online_trace(
        LoadOptions(requests=requests, slices=1, seed=rng.seed_value, limits=LengthLimits())
    )


def _mooncake(rng: Rng, requests: int) -> Sequence[TraceRequest]:
    lengths = _drawn(rng.child("lengths"), MOONCAKE_PROMPTS, MOONCAKE_OUTPUTS)
    arrivals = islice(poisson(rng.child("gaps"), rate_per_s=MOONCAKE_PER_S), requests)
    return [TraceRequest(arrival_ns=at_ns, lengths=next(lengths)) for at_ns in arrivals]


WORKLOADS: Final[Mapping[str, Callable[[Rng, int], Sequence[TraceRequest]]]] = {
    "azure-code": _azure_code,
    "mooncake": _mooncake,
}
OFFLINE: Final[Mapping[str, Callable[[Rng], Iterator[Lengths]]]] = {
    "sharegpt": lambda rng: _drawn(rng, SHAREGPT_PROMPTS, SHAREGPT_OUTPUTS),
    "long-texts": lambda rng: uniform(rng, least=LONG_TEXTS[0], most=LONG_TEXTS[1]),
}


def _drawn(rng: Rng, prompts: Sequence[int], outputs: Sequence[int]) -> Iterator[Lengths]:
    """Yield lengths with these quantiles, along lines between them."""
    while True:
        yield Lengths(
            prompt_tokens=_quantile(prompts, rng.random()),
            output_tokens=_quantile(outputs, rng.random()),
        )


def _quantile(values: Sequence[int], share: float) -> int:
    index = next(i for i, above in enumerate(QUANTILES[1:], start=1) if share <= above)
    below, above = QUANTILES[index - 1], QUANTILES[index]
    weight = (share - below) / (above - below)
    return round(values[index - 1] + (values[index] - values[index - 1]) * weight)

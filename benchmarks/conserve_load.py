"""What the simulated comparison with ConServe sends: two online traces, two offline backlogs.

Arrivals and lengths are drawn from the statistics of published traces, or read from a file. All are
replayed at such a speed that their tokens come at one rate, that of the Azure code trace as it was
recorded: then cells differ in the kind of load and not in its amount.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Final

from benchmarks.coserve_load import LoadOptions, online_trace
from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from loadgen.arrivals import paced, poisson
from loadgen.lengths import LengthLimits, Lengths, uniform
from loadgen.prompts import TokenPrompts, TokenRange
from loadgen.traces.detect import read_requests
from loadgen.traces.requests import TraceRequest
from services.simulator.coserve.router import CoserveRequest

TOKENS_PER_S: Final = 5_300.0
"""Of online work, prompts and answers: 2.57 requests per second of 2,070 tokens."""
MADE_UP_REQUESTS: Final = 4_000
"""As many as the traces have in about 20 minutes; a run takes those of its duration."""
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
    tokens_per_s: float = TOKENS_PER_S
    duration_s: float = 600.0
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineTraffic:
    """The online requests of a run."""

    requests: tuple[CoserveRequest, ...]
    speed: float
    """How many times as fast as recorded."""


def online_traffic(
    load: ConserveLoad, *, context_tokens_max: int, vocabulary_size: int
) -> OnlineTraffic:
    """Return the requests of the first seconds of the trace, at the wanted rate, cut to fit.

    Raises: TraceError that names the line; ConfigError if there are none.
    """
    limits = _limits(context_tokens_max)
    trace = _trace(load)
    fitted = [limits.fit(request.lengths) for request in trace]
    span_s = trace[-1].arrival_ns / NS_PER_S
    tokens = sum(lengths.prompt_tokens + lengths.output_tokens for lengths in fitted)
    speed = load.tokens_per_s * span_s / tokens
    end_ns = round(load.duration_s * NS_PER_S)
    instants = paced((request.arrival_ns for request in trace), speed=speed)
    prompts = TokenPrompts(Rng(load.seed).child("online prompts"), _token_range(vocabulary_size))
    requests = tuple(
        CoserveRequest(
            request_id=f"online-{index}",
            prompt=prompts.make(
                f"{index}",
                tokens=fitted[index].prompt_tokens,
                block_ids=trace[index].block_ids,
            ),
            output_tokens=fitted[index].output_tokens,
            arrival_ns=arrival_ns,
        )
        for index, arrival_ns in enumerate(takewhile(lambda at_ns: at_ns < end_ns, instants))
    )
    return OnlineTraffic(requests=requests, speed=speed)


def offline_backlog(
    load: ConserveLoad, *, context_tokens_max: int, vocabulary_size: int
) -> Iterator[CoserveRequest]:
    """Yield offline requests for ever. Raises: ConfigError if nothing has that name."""
    rng = Rng(load.seed).child("offline")
    try:
        lengths = OFFLINE[load.offline](rng.child("lengths"))
    except KeyError:
        raise ConfigError(f"--offline: {load.offline!r} is none of {', '.join(OFFLINE)}") from None
    limits = _limits(context_tokens_max)
    prompts = TokenPrompts(rng.child("prompts"), _token_range(vocabulary_size))
    for index in count():
        fitted = limits.fit(next(lengths))
        yield CoserveRequest(
            request_id=f"offline-{index}",
            prompt=prompts.make(f"{index}", tokens=fitted.prompt_tokens),
            output_tokens=fitted.output_tokens,
        )


def _trace(load: ConserveLoad) -> Sequence[TraceRequest]:
    if load.trace is not None:
        recorded = [
            request
            for request in read_requests(load.trace)
            if request.lengths.prompt_tokens and request.lengths.output_tokens
        ]
        if len(recorded) < 2 or recorded[-1].arrival_ns == 0:
            raise ConfigError(f"{load.trace}: needs two requests at different instants")
        return recorded
    try:
        return WORKLOADS[load.workload](Rng(load.seed).child("online"))
    except KeyError:
        names = ", ".join(WORKLOADS)
        raise ConfigError(f"--workload: {load.workload!r} is none of {names}") from None


def _azure_code(rng: Rng) -> Sequence[TraceRequest]:
    options = LoadOptions(
        requests=MADE_UP_REQUESTS, slices=1, seed=rng.seed_value, limits=LengthLimits()
    )
    return online_trace(options)


def _mooncake(rng: Rng) -> Sequence[TraceRequest]:
    lengths = _drawn(rng.child("lengths"), MOONCAKE_PROMPTS, MOONCAKE_OUTPUTS)
    arrivals = islice(poisson(rng.child("gaps"), rate_per_s=MOONCAKE_PER_S), MADE_UP_REQUESTS)
    return [
        TraceRequest(arrival_ns=at_ns, lengths=drawn)
        for at_ns, drawn in zip(arrivals, lengths, strict=False)
    ]


WORKLOADS: Final[Mapping[str, Callable[[Rng], Sequence[TraceRequest]]]] = {
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


def _limits(context_tokens_max: int) -> LengthLimits:
    output_tokens_max = min(OUTPUT_TOKENS_MAX, context_tokens_max // 4)
    return LengthLimits(
        prompt_tokens_max=context_tokens_max - output_tokens_max - 1,
        output_tokens_max=output_tokens_max,
    )


def _token_range(vocabulary_size: int) -> TokenRange:
    return TokenRange(token_id_min=0, token_id_max=vocabulary_size - 1)

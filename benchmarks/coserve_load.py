"""The two tides that the co-serving benchmark sends: bursts of online requests, endless offline.

Online requests resemble the Azure code-assistant trace (AzurePublicDataset, 2023: 8,819 requests
in 57 minutes, CV of the gaps 13.2, 73 % of seconds idle, at most 67 in a second where the mean is
2.6), or come from such a file. Their gaps are a mixture of four exponentials, which a gamma
distribution of the same CV is no substitute for: that one is idle 94 % of the time and peaks at
168. Time is stretched so that they are a given share of what the engine can do, and lengths are
divided so that they fit a small model's context; both factors are recorded.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from loadgen.arrivals import arrivals_over, measure_arrivals, paced, steady
from loadgen.lengths import LengthLimits, Lengths, uniform
from loadgen.traces.detect import read_requests
from loadgen.traces.requests import TraceRequest
from services.simulator.coserve.requests import CoserveRequest

GAPS: Final = ((0.34, 0.001), (0.61, 0.105), (0.0345, 0.5), (0.0142, 12.6), (0.0013, 95.0))
"""(share, mean in s) of the trace's gaps, as exponentials."""
RATE_PER_S: Final = 2.566
"""Of the trace."""
PROMPT_LOG_MEAN: Final = 7.0
PROMPT_LOG_DEVIATION: Final = 1.36
PROMPT_TOKENS_MAX: Final = 7437
"""Logarithms of the trace's prompts are near a normal distribution that is cut here."""
OUTPUT_LOG_MEAN: Final = 2.79
OUTPUT_LOG_DEVIATION: Final = 0.85
OUTPUT_TOKENS_MAX: Final = 1899

SCALED: Final = LengthLimits(prompt_divisor=128, output_divisor=4, output_tokens_max=16)
"""So that 1,000 requests take a policy minutes on one core."""
OFFLINE_LEAST: Final = Lengths(prompt_tokens=128, output_tokens=16)
OFFLINE_MOST: Final = Lengths(prompt_tokens=384, output_tokens=48)
"""Summaries of long texts, which is what LongBench's are, cut about as online requests are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Consecutive online requests, which every policy serves before the next slice begins."""

    requests: tuple[CoserveRequest, ...]
    duration_ns: int
    """Until the first request of the next slice would come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What is sent."""

    requests: int = 1000
    slices: int = 6
    seed: int = 7
    trace: Path | None = None
    limits: LengthLimits = SCALED
    offline_least: Lengths = OFFLINE_LEAST
    offline_most: Lengths = OFFLINE_MOST

    def __post_init__(self) -> None:
        if not 1 <= self.slices <= self.requests:
            raise ConfigError("--slices: between 1 and the number of requests")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineLoad:
    """All online requests of a run, and how they relate to the trace."""

    slices: tuple[Slice, ...]
    rate_per_s: float
    speed: float
    """How many times as fast as recorded; below 1 is slower."""
    cv: float
    idle_seconds_share: float
    """Both in recorded time."""


def online_trace(options: LoadOptions) -> list[TraceRequest]:
    """Return the requests as they were recorded, or as they might have been, lengths fitted."""
    if options.trace is None:
        recorded: Iterator[TraceRequest] = _made_up(Rng(options.seed).child("online"))
    else:
        recorded = read_requests(options.trace)
    fitted = (
        TraceRequest(arrival_ns=r.arrival_ns, lengths=options.limits.fit(r.lengths))
        for r in recorded
        if r.lengths.prompt_tokens and r.lengths.output_tokens
    )
    requests = list(itertools.islice(fitted, options.requests))
    if len(requests) < options.requests:
        raise ConfigError(f"--requests: the trace has {len(requests)}")
    return requests


def online_load(
    trace: Sequence[TraceRequest],
    options: LoadOptions,
    *,
    tokens_per_s: float,
    vocabulary_size: int,
) -> OnlineLoad:
    """Replay the trace at such a speed that its tokens come at this rate, cut into slices."""
    statistics = measure_arrivals([request.arrival_ns for request in trace])
    tokens_each = sum(r.lengths.prompt_tokens + r.lengths.output_tokens for r in trace) / len(trace)
    rate_per_s = tokens_per_s / tokens_each
    speed = rate_per_s / statistics.rate_per_s
    instants = list(paced((request.arrival_ns for request in trace), speed=speed))
    instants.append(instants[-1] + round(NS_PER_S / rate_per_s))
    rng = Rng(options.seed).child("online prompts")
    slices = []
    for number in range(options.slices):
        first = number * len(trace) // options.slices
        last = (number + 1) * len(trace) // options.slices
        requests = tuple(
            CoserveRequest(
                request_id=f"online-{index}",
                prompt=_prompt(rng, trace[index].lengths.prompt_tokens, vocabulary_size),
                output_tokens=trace[index].lengths.output_tokens,
                arrival_ns=instants[index] - instants[first],
            )
            for index in range(first, last)
        )
        slices.append(Slice(requests=requests, duration_ns=instants[last] - instants[first]))
    return OnlineLoad(
        slices=tuple(slices),
        rate_per_s=rate_per_s,
        speed=speed,
        cv=statistics.cv,
        idle_seconds_share=statistics.idle_seconds_share,
    )


def offline_backlog(
    options: LoadOptions, *, vocabulary_size: int, name: str
) -> Iterator[CoserveRequest]:
    """Yield offline requests for ever; equal names give equal ones."""
    rng = Rng(options.seed).child("offline")
    lengths = uniform(rng.child("lengths"), least=options.offline_least, most=options.offline_most)
    prompts = rng.child("prompts")
    for index, drawn in enumerate(lengths):
        yield CoserveRequest(
            request_id=f"offline-{name}-{index}",
            prompt=_prompt(prompts, drawn.prompt_tokens, vocabulary_size),
            output_tokens=drawn.output_tokens,
        )


def _made_up(rng: Rng) -> Iterator[TraceRequest]:
    gaps = rng.child("gaps")
    lengths = rng.child("lengths")
    for at_ns in arrivals_over(_mixed_gaps(gaps), steady(RATE_PER_S)):
        prompt_tokens = lengths.lognormvariate(PROMPT_LOG_MEAN, PROMPT_LOG_DEVIATION)
        output_tokens = lengths.lognormvariate(OUTPUT_LOG_MEAN, OUTPUT_LOG_DEVIATION)
        yield TraceRequest(
            arrival_ns=at_ns,
            lengths=Lengths(
                prompt_tokens=min(PROMPT_TOKENS_MAX, math.ceil(prompt_tokens)),
                output_tokens=min(OUTPUT_TOKENS_MAX, math.ceil(output_tokens)),
            ),
        )


def _mixed_gaps(rng: Rng) -> Iterator[float]:
    """Yield gaps of mean one."""
    shares = [share for share, _ in GAPS]
    means_s = [mean_s for _, mean_s in GAPS]
    mean_s = sum(share * mean for share, mean in GAPS) / sum(shares)
    while True:
        (drawn_s,) = rng.choices(means_s, weights=shares)
        yield rng.expovariate(mean_s / drawn_s)


def _prompt(rng: Rng, tokens: int, vocabulary_size: int) -> tuple[int, ...]:
    return tuple(rng.randrange(1, vocabulary_size) for _ in range(tokens))

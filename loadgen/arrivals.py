"""When requests arrive, as endless or ending iterators of instants in ns since the start.

A renewal process of mean one (even, exponential or gamma gaps) is laid over a rate that may change
with time: an arrival falls where the integral of the rate reaches the sum of the gaps so far. So
every mixture of a shape (CV) and a profile (steady, bursts, a published table of rates) is exact:
its mean rate is the profile's, and within a steady rate its coefficient of variation is the CV
that was asked for.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise, repeat, takewhile
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S, seconds

CV_MAX: Final = 100.0
"""Beyond, a gamma distribution is one gap and nothing else within any run."""
RATE_PER_S_MAX: Final = 1e6
STEADY_SEGMENT_NS: Final = 3600 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSegment:
    """A stretch of time in which the mean rate is constant; a rate of 0 is a pause."""

    duration_ns: int
    rate_per_s: float

    def __post_init__(self) -> None:
        if self.duration_ns <= 0:
            raise ConfigError("duration of a rate: must be above 0")
        if not 0 <= self.rate_per_s <= RATE_PER_S_MAX:
            raise ConfigError(f"rate: must be between 0 and {RATE_PER_S_MAX:g} requests per second")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalStatistics:
    """What arrivals look like, measured."""

    requests: int
    span_ns: int
    rate_per_s: float
    """Gaps per second between the first and the last arrival."""
    cv: float
    """Standard deviation of the gaps over their mean."""
    peak_per_s: int
    """The most arrivals in one second, seconds counted from the first arrival."""
    idle_seconds_share: float
    """Seconds without an arrival over all seconds of the span."""


def even_gaps() -> Iterator[float]:
    """Yield gaps of exactly one: a CV of 0."""
    return repeat(1.0)


def exponential_gaps(rng: Rng) -> Iterator[float]:
    """Yield the gaps of a Poisson process of rate one: a CV of 1."""
    while True:
        yield rng.expovariate(1.0)


def gamma_gaps(rng: Rng, *, cv: float) -> Iterator[float]:
    """Return gamma-distributed gaps of mean one and this CV.

    A gamma distribution of shape k has a CV of 1 / sqrt(k): the shape is 1 / CV^2, and a scale of
    CV^2 keeps the mean at one. (A "burstiness" that is passed as the shape itself is another
    number.) Raises: ConfigError for a CV that is not above 0.
    """
    if not 0 < cv <= CV_MAX:
        raise ConfigError(f"cv: must be above 0 and at most {CV_MAX:g}")
    return (rng.gammavariate(1.0 / (cv * cv), cv * cv) for _ in repeat(None))


def arrivals_over(gaps: Iterator[float], segments: Iterable[RateSegment]) -> Iterator[int]:
    """Yield the arrivals of this shape under this rate, until the segments end; never decreasing.

    The first arrival comes one gap after the start.
    """
    start_ns = 0
    due = next(gaps)  # In expected requests, counted from the start of the segment.
    for segment in segments:
        end_ns = start_ns + segment.duration_ns
        expected = segment.rate_per_s * seconds(segment.duration_ns)
        while due < expected:
            yield min(end_ns, start_ns + round(due / segment.rate_per_s * NS_PER_S))
            due += next(gaps)
        due -= expected
        start_ns = end_ns


def steady(rate_per_s: float) -> Iterator[RateSegment]:
    """Return one rate for ever. Raises: ConfigError unless it is above 0."""
    if not rate_per_s > 0:
        raise ConfigError("rate: must be above 0")
    return repeat(RateSegment(duration_ns=STEADY_SEGMENT_NS, rate_per_s=rate_per_s))


def constant(*, rate_per_s: float) -> Iterator[int]:
    """Yield evenly spaced arrivals."""
    return arrivals_over(even_gaps(), steady(rate_per_s))


def poisson(rng: Rng, *, rate_per_s: float) -> Iterator[int]:
    """Yield the arrivals of a Poisson process."""
    return arrivals_over(exponential_gaps(rng), steady(rate_per_s))


def gamma(rng: Rng, *, rate_per_s: float, cv: float) -> Iterator[int]:
    """Yield arrivals with gamma-distributed gaps of this CV; SpotServe's evaluation uses 6."""
    return arrivals_over(gamma_gaps(rng, cv=cv), steady(rate_per_s))


def bursts(rng: Rng, *, quiet: RateSegment, burst: RateSegment) -> Iterator[int]:
    """Yield Poisson arrivals whose rate alternates, beginning quiet, for ever.

    Raises: ConfigError if both rates are 0.
    """
    if quiet.rate_per_s == burst.rate_per_s == 0:
        raise ConfigError("rate: quiet and burst cannot both be 0")
    return arrivals_over(exponential_gaps(rng), cycle((quiet, burst)))


def volleys(*, requests: int, interval_ns: int) -> Iterator[int]:
    """Yield groups of requests at the same instant, the first at once, for ever."""
    if requests < 1 or interval_ns < 1:
        raise ConfigError("volleys: need at least one request and an interval above 0")
    at_ns = 0
    while True:
        yield from repeat(at_ns, requests)
        at_ns += interval_ns


def paced(instants: Iterable[int], *, speed: float) -> Iterator[int]:
    """Yield recorded instants replayed this many times as fast."""
    if not 0 < speed < math.inf:
        raise ConfigError("speed: must be above 0")
    return (round(at_ns / speed) for at_ns in instants)


def before(instants: Iterable[int], *, end_ns: int) -> Iterator[int]:
    """Yield the arrivals before the end."""
    return takewhile(lambda at_ns: at_ns < end_ns, instants)


def measure_arrivals(instants: Sequence[int]) -> ArrivalStatistics:
    """Return what these arrivals look like; needs two at different instants.

    Raises: ConfigError if there are none.
    """
    span_ns = instants[-1] - instants[0] if instants else 0
    if span_ns <= 0:
        raise ConfigError("arrivals: need two at different instants to measure a rate")
    gaps = [later - earlier for earlier, later in pairwise(instants)]
    mean_ns = span_ns / len(gaps)
    variance = math.fsum((gap - mean_ns) ** 2 for gap in gaps) / len(gaps)
    per_second: dict[int, int] = {}
    for at_ns in instants:
        second = (at_ns - instants[0]) // NS_PER_S
        per_second[second] = per_second.get(second, 0) + 1
    span_s = span_ns // NS_PER_S + 1
    return ArrivalStatistics(
        requests=len(instants),
        span_ns=span_ns,
        rate_per_s=len(gaps) / seconds(span_ns),
        cv=math.sqrt(variance) / mean_ns,
        peak_per_s=max(per_second.values()),
        idle_seconds_share=1 - len(per_second) / span_s,
    )

"""From the times of requests to the rows of the co-serving table, with intervals; pure.

Requests of one burst share one fate, so what is drawn anew for an interval is slices, not requests:
every draw takes the same slices of both policies, which served the same requests in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from libs.engine.scheduling.tally import CoserveTally
from libs.kernel.ranks import nearest_rank
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S, milliseconds

DRAWS: Final = 1000
INTERVAL: Final = (0.025, 0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slos:
    """What online work is promised."""

    ttft_ns: int
    tbt_ns: int


@dataclass(slots=True, kw_only=True)
class RequestTimes:
    """When the tokens of one online request came, on the benchmark's clock."""

    arrival_ns: int
    """When it should have been sent; being late is not its client's fault."""
    token_at_ns: list[int] = field(default_factory=list)
    cut_off_at_ns: int | None = None
    """When its slice ended before its last token came."""

    @property
    def ttft_ns(self) -> int:
        """From the arrival to the first token, or to where it was cut off without any: at least."""
        if self.token_at_ns:
            return self.token_at_ns[0] - self.arrival_ns
        assert self.cut_off_at_ns is not None
        return self.cut_off_at_ns - self.arrival_ns

    @property
    def gaps_ns(self) -> list[int]:
        """Between its tokens."""
        return [later - earlier for earlier, later in pairwise(self.token_at_ns)]

    def is_met(self, slos: Slos) -> bool:
        """Whether its first token and every further one came, and came in time."""
        is_whole = self.cut_off_at_ns is None
        return (
            is_whole
            and self.ttft_ns <= slos.ttft_ns
            and all(gap <= slos.tbt_ns for gap in self.gaps_ns)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """What making offline work interruptible took, by counters inside the steps."""

    safepoint_step_ns: int = 0
    """Steps that had safepoints."""
    safepoint_check_ns: int = 0
    """Of them, at the safepoints."""
    stepping_ns: int = 0
    """All steps of a worker that keeps checkpoints."""
    copying_ns: int = 0
    """Its copies, beside the steps: what they cost these is less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceResult:
    """What one variant did with one slice."""

    requests: tuple[RequestTimes, ...]
    tally: CoserveTally
    """Of the slice alone."""
    duration_ns: int
    overheads: Overheads = field(default_factory=Overheads)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoserveRow:
    """One line of the table."""

    policy: str
    online_ttft_p50_ms: float
    online_ttft_p99_ms: float
    online_tbt_p99_ms: float
    offline_tok_s: float
    """Prompt and answer tokens of offline work, computed for the first time."""
    total_tok_s: float
    slo_attainment: float
    """Share of online requests whose first token and every further one came in time."""
    online_requests: int
    online_unfinished: int
    """Of them, those whose slice was cut off before their last token; they count as missed."""
    steps_yielded: int
    tokens_yielded: int
    tokens_repeated: int
    evictions_stored: int
    evictions_recomputed: int
    prediction_bias: float
    """Observed time of steps over predicted."""
    safepoint_share: float
    """Of the steps that had safepoints, the time spent at them."""
    checkpoint_share: float
    """Time of copies to host memory over the time of steps; they run beside one another, so what
    copies take from steps is less."""
    ttft_p99_ratio: tuple[float, float, float] | None = None
    """To the baseline: the ratio, and 95 % of its bootstrap draws; None for the baseline."""
    tbt_p99_ratio: tuple[float, float, float] | None = None


def row_of(policy: str, results: Sequence[SliceResult], *, slos: Slos) -> CoserveRow:
    """Add up a policy's slices."""
    requests = [request for result in results for request in result.requests]
    tallies = [result.tally for result in results]
    overheads = [result.overheads for result in results]
    elapsed_ns = sum(result.duration_ns for result in results)
    offline = sum(tally.tokens_offline for tally in tallies)
    online = sum(tally.tokens_online for tally in tallies)
    predicted_ns = sum(tally.predicted_ns for tally in tallies)
    ttfts_ns = [request.ttft_ns for request in requests]
    return CoserveRow(
        policy=policy,
        online_ttft_p50_ms=_ms(quantile(ttfts_ns, 0.5)),
        online_ttft_p99_ms=_ms(quantile(ttfts_ns, 0.99)),
        online_tbt_p99_ms=_ms(quantile(_gaps(requests), 0.99)),
        offline_tok_s=round(offline * NS_PER_S / elapsed_ns, 1),
        total_tok_s=round((offline + online) * NS_PER_S / elapsed_ns, 1),
        slo_attainment=round(sum(r.is_met(slos) for r in requests) / max(1, len(requests)), 4),
        online_requests=len(requests),
        online_unfinished=sum(request.cut_off_at_ns is not None for request in requests),
        steps_yielded=sum(tally.steps_yielded for tally in tallies),
        tokens_yielded=sum(tally.tokens_yielded for tally in tallies),
        tokens_repeated=sum(tally.tokens_repeated for tally in tallies),
        evictions_stored=sum(tally.evictions_stored for tally in tallies),
        evictions_recomputed=sum(tally.evictions_recomputed for tally in tallies),
        prediction_bias=round(
            sum(tally.observed_ns for tally in tallies) / max(1, predicted_ns), 3
        ),
        safepoint_share=_share(
            sum(o.safepoint_check_ns for o in overheads),
            of=sum(o.safepoint_step_ns for o in overheads),
        ),
        checkpoint_share=_share(
            sum(o.copying_ns for o in overheads), of=sum(o.stepping_ns for o in overheads)
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """A policy's P99 over the baseline's: the ratio, and the ends of its interval."""

    ttft_p99: tuple[float, float, float]
    tbt_p99: tuple[float, float, float]


def ratios_to(
    baseline: Sequence[SliceResult], results: Sequence[SliceResult], *, seed: int
) -> Ratios:
    """Compare slice by slice; both have served the same slices."""
    rng = Rng(seed).child("bootstrap")
    drawn = [[rng.randrange(len(baseline)) for _ in baseline] for _ in range(DRAWS)]

    def ratio(values: Mapping[str, list[list[int]]], slices: Sequence[int]) -> float:
        p99 = [
            quantile([value for index in slices for value in values[who][index]], 0.99)
            for who in ("policy", "baseline")
        ]
        return p99[0] / max(1.0, p99[1])

    def with_interval(values: Mapping[str, list[list[int]]]) -> tuple[float, float, float]:
        draws = [ratio(values, slices) for slices in drawn]
        low, high = (quantile(draws, share) for share in INTERVAL)
        middle = ratio(values, range(len(baseline)))
        return (round(middle, 3), round(low, 3), round(high, 3))

    both = {"policy": results, "baseline": baseline}
    return Ratios(
        ttft_p99=with_interval(
            {who: [[q.ttft_ns for q in r.requests] for r in of] for who, of in both.items()}
        ),
        tbt_p99=with_interval({who: [_gaps(r.requests) for r in of] for who, of in both.items()}),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the least value that so great a share of them does not exceed; 0 without values."""
    if not values:
        return 0.0
    return sorted(values)[nearest_rank(share, count=len(values))]


def _gaps(requests: Sequence[RequestTimes]) -> list[int]:
    return [gap for request in requests for gap in request.gaps_ns]


def _share(part_ns: int, *, of: int) -> float:
    return round(part_ns / max(1, of), 6)


def _ms(value_ns: float) -> float:
    return round(milliseconds(round(value_ns)), 2)

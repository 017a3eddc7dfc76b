"""What a run showed, as numbers. Pure arithmetic over its records.

Percentiles are nearest-rank: the smallest value such that at least that share of all values is not
larger; always a value that was measured. Latencies are those of requests that ended ok; what did
not counts against attainment and goodput, whose base is every request offered. Rates are over the
whole run, from its start to the end of its last request.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from libs.kernel.errors import ConfigError
from libs.kernel.ranks import nearest_rank
from libs.kernel.units import seconds
from loadgen.records import Outcome, RequestRecord, RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What an answer must keep to be good; None leaves a dimension open."""

    ttft_ns: int | None = None
    tpot_ns: int | None = None
    """Mean time per token after the first."""
    tbt_ns: int | None = None
    """Every single gap between two tokens."""
    end_to_end_ns: int | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_ns", "tpot_ns", "tbt_ns", "end_to_end_ns"):
            limit = getattr(self, name)
            if limit is not None and limit <= 0:
                raise ConfigError(f"{name.removesuffix('_ns')} slo: must be above 0")

    def is_kept_by(self, record: RequestRecord) -> bool:
        """Whether the request ended ok and within every limit."""
        return (
            record.ending.outcome is Outcome.OK
            and _within(record.ttft_ns, self.ttft_ns)
            and _within(record.tpot_ns, self.tpot_ns)
            and _within(max(record.gaps_ns(), default=None), self.tbt_ns)
            and _within(record.end_to_end_ns, self.end_to_end_ns)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A summary of measured durations, in ns. All 0 where `count` is 0."""

    count: int = 0
    mean_ns: int = 0
    p50_ns: int = 0
    p90_ns: int = 0
    p95_ns: int = 0
    p99_ns: int = 0
    max_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonCount:
    """How often a request ended in this way, with one example."""

    outcome: Outcome
    reason: str
    count: int
    example: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is told about a run."""

    requests: dict[Outcome, int]
    """How many ended in each way; every outcome is there."""
    requests_unsent: int
    reasons: tuple[ReasonCount, ...]
    """Everything but ok, most frequent first."""
    is_interrupted: bool
    duration_ns: int
    streams_open_most: int
    prompt_tokens: int
    """Of the requests that ended ok."""
    output_tokens: int
    """Received, over all requests."""
    ttft: Distribution
    tbt: Distribution
    """Over all gaps between two tokens of one answer."""
    tpot: Distribution
    end_to_end: Distribution
    lateness: Distribution
    """Of the generator itself, over all requests sent."""
    slo: Slo
    requests_in_slo: int
    output_tokens_in_slo: int

    @property
    def requests_sent(self) -> int:
        """Requests that went out."""
        return sum(self.requests.values())

    @property
    def requests_offered(self) -> int:
        """Requests that should have gone out."""
        return self.requests_sent + self.requests_unsent

    @property
    def attainment(self) -> float:
        """Share of the requests offered that ended ok within the SLO; 0 if there were none."""
        return self.requests_in_slo / self.requests_offered if self.requests_offered else 0.0

    def per_s(self, count: int) -> float:
        """Return a count as a rate over the run."""
        return count / seconds(self.duration_ns) if self.duration_ns else 0.0

    def is_clean(self, *, reasons_allowed: Iterable[str] = ()) -> bool:
        """Whether all went out and ended ok, or were rejected for one of these reasons."""
        allowed = set(reasons_allowed)
        return (
            not self.requests_unsent
            and not self.is_interrupted
            and self.requests_sent > 0
            and all(r.outcome is Outcome.REJECTED and r.reason in allowed for r in self.reasons)
        )


def summarise(result: RunResult, *, slo: Slo) -> Report:
    """Return the report of a run."""
    records = sorted(result.records, key=lambda record: record.index)
    whole = [record for record in records if record.ending.outcome is Outcome.OK]
    good = [record for record in whole if slo.is_kept_by(record)]
    return Report(
        requests={
            outcome: sum(record.ending.outcome is outcome for record in records)
            for outcome in Outcome
        },
        requests_unsent=result.requests_unsent,
        reasons=_reasons(records),
        is_interrupted=result.is_interrupted,
        duration_ns=result.duration_ns,
        streams_open_most=result.streams_open_most,
        prompt_tokens=sum(record.prompt_tokens or 0 for record in whole),
        output_tokens=sum(record.output_tokens for record in records),
        ttft=distribution(r.ttft_ns for r in whole),
        tbt=distribution(gap for r in whole for gap in r.gaps_ns()),
        tpot=distribution(r.tpot_ns for r in whole),
        end_to_end=distribution(r.end_to_end_ns for r in whole),
        lateness=distribution(r.lateness_ns for r in records),
        slo=slo,
        requests_in_slo=len(good),
        output_tokens_in_slo=sum(record.output_tokens for record in good),
    )


def distribution(values: Iterable[int | None]) -> Distribution:
    """Summarise the values there are."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return Distribution()
    return Distribution(
        count=len(ordered),
        mean_ns=round(sum(ordered) / len(ordered)),
        p50_ns=percentile(ordered, 50),
        p90_ns=percentile(ordered, 90),
        p95_ns=percentile(ordered, 95),
        p99_ns=percentile(ordered, 99),
        max_ns=ordered[-1],
    )


def percentile(ordered: Sequence[int], percent: int) -> int:
    """Return the nearest-rank percentile of values in ascending order, of which there is one."""
    assert ordered
    assert 0 < percent <= 100
    return ordered[nearest_rank(percent / 100, count=len(ordered))]


def shares(values: Iterable[int], *, points_max: int) -> list[tuple[int, float]]:
    """Return points (value, share of values not above it) of the distribution function, thinned."""
    ordered = sorted(values)
    step = max(1, math.ceil(len(ordered) / points_max))
    ranks = [*range(step, len(ordered), step), len(ordered)] if ordered else []
    return [(ordered[rank - 1], rank / len(ordered)) for rank in ranks]


def _within(measured_ns: int | None, limit_ns: int | None) -> bool:
    """An answer of one token has no gap that could be too long."""
    return measured_ns is None or limit_ns is None or measured_ns <= limit_ns


def _reasons(records: Sequence[RequestRecord]) -> tuple[ReasonCount, ...]:
    groups: dict[tuple[Outcome, str], list[RequestRecord]] = {}
    for record in records:
        if record.ending.outcome is not Outcome.OK:
            groups.setdefault((record.ending.outcome, record.ending.reason), []).append(record)
    counts = (
        ReasonCount(
            outcome=outcome,
            reason=reason,
            count=len(group),
            example=group[0].ending.explanation,
            request_id=group[0].request_id,
        )
        for (outcome, reason), group in groups.items()
    )
    return tuple(sorted(counts, key=lambda c: (-c.count, c.outcome, c.reason)))

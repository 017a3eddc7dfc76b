"""How long a simulated device takes: for steps, for safepoints in them, for copies to its host."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from libs.engine.steps import PlanEntry, StepPlan
from libs.kernel.core import require
from libs.kernel.rng import Rng
from libs.policy.kv_return import HostLink
from libs.policy.latency_model import StepWork

DEVIATIONS_MAX: Final = 3.0
"""No step deviates by more than so many standard deviations."""


class StepTimes(Protocol):
    """What steps really take, whatever the scheduler believes of them."""

    def predict_ns(self, work: StepWork) -> int:
        """Return the time of a step; a LatencyModel is one of these."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One replica's hardware, as far as co-serving on it takes time."""

    times: StepTimes
    layers: int
    """Between which a step can be given up."""
    link: HostLink
    """Between its KV and host memory; one copy at a time, as the worker's copying thread has it."""
    safepoint_ns: int = 0
    """What each safepoint of a step adds to it."""
    deviation: float = 0.0
    """Of the time of equal steps, relative to it; normally distributed, but for the far ends."""

    def __post_init__(self) -> None:
        require(0 <= self.deviation * DEVIATIONS_MAX < 1, "a step could take no time at all")

    def duration_ns(self, plan: StepPlan, *, noise: Rng) -> int:
        """Return what this step takes, this time."""
        duration_ns = self.times.predict_ns(work_of(plan.entries))
        if plan.layers_between_safepoints is not None:
            groups = -(-self.layers // plan.layers_between_safepoints)
            duration_ns += (groups - 1) * self.safepoint_ns
        if self.deviation:
            drawn = max(-DEVIATIONS_MAX, min(DEVIATIONS_MAX, noise.gauss(0.0, 1.0)))
            duration_ns = round(duration_ns * (1 + self.deviation * drawn))
        return max(1, duration_ns)

    def share_of(self, part: Iterable[PlanEntry], whole: Iterable[PlanEntry]) -> float:
        """Return what a part of a step takes alone, relative to the step."""
        alone_ns = self.times.predict_ns(work_of(part))
        return min(1.0, alone_ns / max(1, self.times.predict_ns(work_of(whole))))


def work_of(entries: Iterable[PlanEntry]) -> StepWork:
    """Add up what the entries of a plan compute, as the scheduler's budget does."""
    rows = tokens_attended = sequences = 0
    pairs_prefilled = 0.0
    for entry in entries:
        tokens, before = len(entry.token_ids), entry.start_position
        rows += tokens
        tokens_attended += before
        sequences += 1
        if tokens > 1:
            pairs_prefilled += tokens * (before + tokens / 2)
    return StepWork(
        rows=rows,
        pairs_prefilled=pairs_prefilled,
        tokens_attended=tokens_attended,
        sequences=sequences,
    )

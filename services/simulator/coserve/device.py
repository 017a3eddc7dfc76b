"""How long a simulated device takes: for steps, for safepoints in them, for copies to its host."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from libs.engine.steps import PlanEntry
from libs.policy.kv_return import HostLink
from libs.policy.latency_model import StepWork


class StepTimes(Protocol):
    """What steps really take, whatever the scheduler believes of them."""

    def predict_ns(self, work: StepWork) -> int:
        """Return the time of a step; a LatencyModel is one of these."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One replica's hardware, as far as co-serving on it takes time."""

    times: StepTimes
    link: HostLink
    """Between its KV and host memory; one copy at a time, as the worker's copying thread has it."""
    safepoint_ns: int = 0
    """What each safepoint of a step adds to it."""
    deviation: float = 0.0
    """Of the time of equal steps, relative: a normal distribution, cut at three of these."""

    def __post_init__(self) -> None:
        # Beyond, a step could take no time at all.
        assert 0 <= self.deviation < 1 / 3


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

"""How much spot capacity each zone has, over time.

A shortage begins in one zone of a region and reaches each of the others with some probability. It
takes capacity away in steps minutes apart and gives all of it back at its end: after a preemption
another follows in the same zone within minutes (SkyServe's SpotHedge, EuroSys 2025, section 4). In
a real trace of a day of g4dn nodes 17 of 48 ticks with a loss took more than one node.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from services.simulator.what_if.scenario import HOUR_NS, Scenario

DAY_NS: Final = 24 * HOUR_NS
SPREAD: Final = 0.25
"""Probability that a shortage reaches another zone of its region."""
STEPS_MAX: Final = 3
STEP_GAP_MEAN_S: Final = 180.0
LENGTH_MEAN_S: Final = 2_400.0
LOSS: Final = (0.2, 0.9)
"""Of a zone's capacity, by one shortage, from least to most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneCapacity:
    """What share of its nominal spot capacity a zone has: (at_ns, share from then on)."""

    name: str
    steps: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """One step of one shortage."""

    from_ns: int
    until_ns: int
    share: float


def zones_of(scenario: Scenario, *, region: int) -> tuple[ZoneCapacity, ...]:
    """Return the zones of a region; the same for every cell that asks."""
    names = [f"zone-{region + 1}{chr(97 + zone)}" for zone in range(scenario.zones_per_region)]
    cuts: dict[str, list[_Cut]] = {name: [] for name in names}
    rng = Rng(scenario.seed).child(f"shortages of region {region}")
    at_ns = 0
    while scenario.shortages_per_day:
        at_ns += round(rng.expovariate(1.0) * DAY_NS / scenario.shortages_per_day)
        if at_ns >= scenario.end_at_ns:
            break
        origin = rng.randrange(len(names))
        reached = [rng.random() < SPREAD for _ in names]
        shortage = list(_shortage(rng, at_ns=at_ns))
        for zone, name in enumerate(names):
            if zone == origin or reached[zone]:
                cuts[name] += shortage
    return tuple(ZoneCapacity(name=name, steps=_steps(cuts[name])) for name in names)


def _shortage(rng: Rng, *, at_ns: int) -> Iterator[_Cut]:
    loss = rng.uniform(*LOSS)
    steps = rng.randint(1, STEPS_MAX)
    until_ns = at_ns + round(rng.expovariate(1 / LENGTH_MEAN_S) * NS_PER_S)
    for step in range(1, steps + 1):
        yield _Cut(from_ns=at_ns, until_ns=max(until_ns, at_ns + 1), share=1 - loss * step / steps)
        at_ns += round(rng.expovariate(1 / STEP_GAP_MEAN_S) * NS_PER_S)


def _steps(cuts: Sequence[_Cut]) -> tuple[tuple[int, float], ...]:
    """Lay shortages over one another: the worst that holds counts."""
    edges = sorted({0, *(cut.from_ns for cut in cuts), *(cut.until_ns for cut in cuts)})
    steps: list[tuple[int, float]] = []
    for at_ns in edges:
        share = min((cut.share for cut in cuts if cut.from_ns <= at_ns < cut.until_ns), default=1.0)
        if not steps or steps[-1][1] != share:
            steps.append((at_ns, share))
    return tuple(steps)

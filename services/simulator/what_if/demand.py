"""What one cell is asked: a Poisson process whose rate follows the day, made as it is taken.

The cells' processes are independent: together they are the Poisson process of the whole fleet, each
request of which goes to a cell at random.
"""

import math
from collections.abc import Iterator
from typing import Final

from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from loadgen.arrivals import RateSegment, arrivals_over, exponential_gaps
from services.simulator.what_if.scenario import Scenario
from services.simulator.what_if.zones import DAY_NS

SEGMENT_NS: Final = 300 * NS_PER_S
"""The rate is constant for so long."""


def requests_per_s_at(scenario: Scenario, at_ns: int) -> float:
    """Return the rate of one cell: least at the beginning of the day, greatest in its middle."""
    swing = (scenario.peak - 1) * math.cos(2 * math.pi * at_ns / DAY_NS)
    return scenario.requests_per_s_of_cell * (1 - swing)


def arrivals_of(scenario: Scenario, *, cell: int) -> Iterator[int]:
    """Yield the instants at which requests come to the cell."""
    rng = Rng(scenario.seed).child(f"arrivals of cell {cell}")
    return arrivals_over(exponential_gaps(rng), _rates(scenario))


def _rates(scenario: Scenario) -> Iterator[RateSegment]:
    for at_ns in range(0, scenario.end_at_ns, SEGMENT_NS):
        yield RateSegment(
            duration_ns=min(SEGMENT_NS, scenario.end_at_ns - at_ns),
            rate_per_s=requests_per_s_at(scenario, at_ns),
        )

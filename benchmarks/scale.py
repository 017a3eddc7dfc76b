"""What simulating a fleet of any size takes: processor time and memory, by requests.

    python -m benchmarks.scale --requests 1e4 --requests 1e5 --requests 1e6 --json FILE

Cells of 100 GPUs are asked 10^5 requests a day each, so that more requests mean more cells, each as
busy as before; fewer than one cell's day are a part of its day. Only spot is run: on demand less
happens. Processor time is that of all processes together, memory that of the largest.

What bounds it: nothing is kept of a request that has ended but its counts, and a cell is gone when
its day is over; so memory is that of one cell for each process, and time is linear in cells. Within
a cell a request costs a few actions of a heap of its cell's own, O(log of what is under way).
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.provenance import provenance, write_record
from services.simulator.what_if.run import Answer, answer
from services.simulator.what_if.scenario import Buying, Scenario

CELL_GPUS: Final = 100
CELL_REQUESTS_PER_DAY: Final = 1e5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fleet."""

    gpus: int
    hours: float
    requests: int
    cpu_s: float
    wall_s: float
    cpu_us_per_request: float
    memory_mib: float
    """The most that any one process took."""
    answer: dict[str, str | int | float]


def scenario_of(requests: float, *, seed: int) -> Scenario:
    """Return the scenario in which about so many requests come."""
    cells = max(1, round(requests / CELL_REQUESTS_PER_DAY))
    hours = 24 * min(1.0, requests / CELL_REQUESTS_PER_DAY)
    return Scenario(
        gpus=cells * CELL_GPUS,
        cell_gpus=CELL_GPUS,
        requests_per_day=cells * CELL_REQUESTS_PER_DAY,
        hours=hours,
        peak=1.5 if hours == 24 else 1.0,
        seed=seed,
    )


def measure(requests: float, *, seed: int, jobs: int) -> Row:
    """Run one fleet."""
    scenario = scenario_of(requests, seed=seed)
    cpu_s, wall_s = _cpu_s(), time.perf_counter()
    found = answer(scenario, buying=Buying.SPOT, jobs=jobs, on_cell=_tell)
    return _row(scenario, found, cpu_s=_cpu_s() - cpu_s, wall_s=time.perf_counter() - wall_s)


def _row(scenario: Scenario, found: Answer, *, cpu_s: float, wall_s: float) -> Row:
    return Row(
        gpus=scenario.gpus,
        hours=scenario.hours,
        requests=found.requests,
        cpu_s=round(cpu_s, 2),
        wall_s=round(wall_s, 2),
        cpu_us_per_request=round(1e6 * cpu_s / found.requests, 1),
        memory_mib=round(max(usage.ru_maxrss for usage in _usages()) / 1024, 1),
        answer=found.as_json(),
    )


def _cpu_s() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in _usages())


def _usages() -> tuple[resource.struct_rusage, resource.struct_rusage]:
    return (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )


def _tell(cells: int) -> None:
    print(f"cells done: {cells}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=float, action="append", help="repeatable")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    for requests in options.requests or [1e4, 1e5, 1e6]:
        rows.append(asdict(measure(requests, seed=options.seed, jobs=options.jobs)))
        # After each row: the next may take ten times as long, and be given up.
        write_record({"rows": rows, **provenance("benchmarks.scale")}, options.json)


if __name__ == "__main__":
    main()

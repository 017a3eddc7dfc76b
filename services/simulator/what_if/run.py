"""All cells of a scenario, one after another or in several processes, and what they come to.

A cell needs nothing of the others but the zones, which follow from the seed: so they run in any
order and in any process with the same outcome, and only one per process is in memory.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

from libs.kernel.units import seconds
from services.simulator.what_if.cell import Cell, CellOutcome, slo_ns
from services.simulator.what_if.scenario import HOUR_NS, Buying, Scenario

OnCell = Callable[[int], None]
COMPARED_CELLS_MAX: Final = 8
"""Cells that are run again on demand alone: they differ by chance alone, and cost time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a fleet would do and cost; seconds, US dollars and counts."""

    buying: Buying
    cells: int
    """That were run."""
    gpus_mean: float
    """Rented, over the time."""
    spot_share: float
    """Of the rented time."""
    requests: int
    failed: int
    slo_s: float
    slo_attained: float
    """Of all requests; a failed one attains nothing."""
    p50_s: float
    p99_s: float
    ttft_p99_s: float
    tokens: int
    tokens_recomputed: int
    usd: float
    usd_per_million_tokens: float
    nodes_preempted: int
    handovers: int
    actions: int
    digest: str
    """Of all histories; equal for equal scenarios."""

    def as_json(self) -> dict[str, str | int | float]:
        """Return the fields for machines."""
        return asdict(self)


def answer(
    scenario: Scenario, *, buying: Buying, cells: list[int] | None = None, jobs: int = 1,
    on_cell: OnCell | None = None,
) -> Answer:  # fmt: skip
    """Run cells, all by default, in so many processes; the outcome does not depend on `jobs`."""
    numbers = list(range(scenario.cells)) if cells is None else cells
    whole = CellOutcome()
    for done, outcome in enumerate(_outcomes(scenario, buying, numbers, jobs=jobs), start=1):
        whole.merge(outcome)
        if on_cell is not None:
            on_cell(done)
    return _answer_of(scenario, buying, whole, cells=len(numbers))


def compared_cells(scenario: Scenario) -> list[int]:
    """Return the cells that stand for all where on-demand is compared, evenly spread."""
    step = max(1, scenario.cells // COMPARED_CELLS_MAX)
    return list(range(0, scenario.cells, step))[:COMPARED_CELLS_MAX]


def _outcomes(
    scenario: Scenario, buying: Buying, numbers: list[int], *, jobs: int
) -> Iterator[CellOutcome]:
    run = partial(_run_cell, scenario, buying)
    if jobs == 1:
        yield from map(run, numbers)
        return
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        yield from pool.map(run, numbers)


def _run_cell(scenario: Scenario, buying: Buying, number: int) -> CellOutcome:
    return Cell(scenario, number=number, buying=buying).run()


def _answer_of(scenario: Scenario, buying: Buying, whole: CellOutcome, *, cells: int) -> Answer:
    bill, node = whole.bill, scenario.node
    node_ns = bill.spot_node_ns + bill.on_demand_node_ns
    usd = (
        bill.spot_node_ns * node.spot_usd_per_hour
        + bill.on_demand_node_ns * node.on_demand_usd_per_hour
    ) / HOUR_NS
    return Answer(
        buying=buying,
        cells=cells,
        gpus_mean=round(node.gpus_per_node * node_ns / scenario.end_at_ns, 1),
        spot_share=round(bill.spot_node_ns / node_ns, 4) if node_ns else 0.0,
        requests=whole.requests,
        failed=whole.failed,
        slo_s=round(seconds(slo_ns(scenario)), 3),
        slo_attained=round(whole.within_slo / whole.requests, 5) if whole.requests else 0.0,
        p50_s=whole.latency_ms.percentile(0.5) / 1_000,
        p99_s=whole.latency_ms.percentile(0.99) / 1_000,
        ttft_p99_s=whole.first_token_ms.percentile(0.99) / 1_000,
        tokens=whole.tokens,
        tokens_recomputed=whole.tokens_recomputed,
        usd=round(usd, 2),
        usd_per_million_tokens=round(1e6 * usd / whole.tokens, 4) if whole.tokens else 0.0,
        nodes_preempted=bill.nodes_preempted,
        handovers=whole.handovers,
        actions=whole.actions,
        digest=hashlib.blake2b("".join(whole.digests).encode(), digest_size=16).hexdigest(),
    )

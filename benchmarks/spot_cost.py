"""What a token costs on spot, beside the smallest fleet on demand that serves as well.

    python -m benchmarks.spot_cost --json FILE [--spot-trace FILE] [--load gpt-20b:0.35]
        [--seeds 1,2,3] [--nodes-extra 0]

Both fleets run the same engine and the same policy, `tideserve`. On spot the planner buys the nodes
that it wants, as long as the trace offers them, and nodes on demand for what spot lacks; launches
are paid. On demand a fixed number of nodes is there from beginning to end: the smallest by search
whose SLO attainment is at least that of the spot fleet under the same arrivals.

SLO: a request has ended within twice the time that SpotServe's table 1 gives for one alone on the
model's least replica. A spot node costs 0.487 of one on demand; what is above that in the last
column is paid for launches, for the time after a notice, for spare nodes, and for nodes on demand.

The record is written after every workload, and a run whose record of the same commit is there goes
on from it. On a trace of 20 minutes one takes ten seconds of one core (gpt-20b:0.35) to minutes
(opt-6.7b:3), on one of ten hours thirty times as long.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import TypeAdapter
from rich.table import Table

from benchmarks.gains import Interval, geometric_mean
from benchmarks.provenance import provenance, write_record
from benchmarks.spotserve import seeds_of
from libs.contracts.reports import Market
from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from libs.policy.cost_model import execution_ns
from libs.policy.paper_profiles import PAPER_PROFILES
from libs.policy.shapes import ReplicaShape
from services.launcher.console import RESULTS
from services.planner.options import CapacityOptions
from services.simulator.spot.outcome import cost_usd
from services.simulator.spot.run import SpotRun, run_spot
from services.simulator.spot.setting import PolicyName, Setting, run_options

LEAST_REPLICAS: Final = {
    "opt-6.7b": ReplicaShape(stages=1, shards=4),
    "gpt-20b": ReplicaShape(stages=3, shards=4),
    "llama-30b": ReplicaShape(stages=2, shards=8),
}
"""Of table 1."""
SLO_FACTOR: Final = 2
LOADS: Final = ("gpt-20b:0.35", "gpt-20b:0.7", "opt-6.7b:3")
"""The paper's for GPT-20B, and two that need as many nodes as spot markets may not have."""
NODES_MAX: Final = 40
Workload: TypeAlias = tuple[str, str, float, int, int]
"""Model, trace, requests/s, spare nodes and seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFigures:
    """Of one run."""

    nodes: float
    """Paid for, on average."""
    nodes_on_demand: float
    requests: int
    failed: int
    attainment: float
    """The part of the requests that met the SLO; one that failed did not."""
    usd_per_1k_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One workload under one seed."""

    model: str
    trace: str
    arrivals: str
    requests_per_s: float
    nodes_extra: int
    seed: int
    slo_s: float
    spot: FleetFigures
    on_demand: FleetFigures
    on_demand_one_less: FleetFigures | None
    """The proof that no smaller fleet would do; None: there is none."""

    @property
    def workload(self) -> Workload:
        """What it is a row of."""
        return self.model, self.trace, self.requests_per_s, self.nodes_extra, self.seed

    @property
    def cost_ratio(self) -> float:
        """Cost of a token on spot by that on demand."""
        return self.spot.usd_per_1k_tokens / self.on_demand.usd_per_1k_tokens


def compare(setting: Setting, capacity: CapacityOptions) -> Row:
    """Simulate the spot fleet, then search for the fleet on demand."""
    slo_ns = slo_of(setting.model)
    spot = figures_of(run_spot(run_options(replace(setting, capacity=capacity))), slo_ns=slo_ns)
    tried: dict[int, FleetFigures] = {}

    def on_demand(nodes: int) -> FleetFigures:
        if nodes not in tried:
            fixed = replace(setting, on_demand_nodes=nodes)
            tried[nodes] = figures_of(run_spot(run_options(fixed)), slo_ns=slo_ns)
        return tried[nodes]

    nodes_min = LEAST_REPLICAS[setting.model].workers // 4
    nodes = max(nodes_min, round(spot.nodes) - capacity.nodes_extra)
    while nodes < NODES_MAX and on_demand(nodes).attainment < spot.attainment:
        nodes += 1
    while nodes > nodes_min and on_demand(nodes - 1).attainment >= spot.attainment:
        nodes -= 1
    model, trace, requests_per_s, nodes_extra, seed = workload_of(setting, capacity)
    return Row(
        model=model,
        trace=trace,
        arrivals=setting.arrivals,
        requests_per_s=requests_per_s,
        nodes_extra=nodes_extra,
        seed=seed,
        slo_s=round(slo_ns / NS_PER_S, 2),
        spot=spot,
        on_demand=on_demand(nodes),
        on_demand_one_less=tried.get(nodes - 1),
    )


def workload_of(setting: Setting, capacity: CapacityOptions) -> Workload:
    """Return what tells the rows of a record apart."""
    trace, rate = Path(setting.spot_trace).name, setting.requests_per_s or 0.0
    return setting.model, trace, rate, capacity.nodes_extra, setting.seed


def slo_of(model: str) -> int:
    """Return the latency in ns that a request is to stay within."""
    return SLO_FACTOR * execution_ns(PAPER_PROFILES[model], LEAST_REPLICAS[model], batch=1)


def figures_of(run: SpotRun, *, slo_ns: int) -> FleetFigures:
    """Sum a run up."""
    trace, market = run.options.trace, run.fleet.market
    done = [request for request in run.requests if request.latency_ns is not None]
    met = sum(request.latency_ns is not None and request.latency_ns <= slo_ns for request in done)
    tokens = sum(request.prompt_tokens + request.output_tokens for request in done)
    on_demand_ns = trace.on_demand_node_ns
    node_ns = trace.node_ns
    if market is not None:
        on_demand_ns = market.paid_ns(Market.ON_DEMAND)
        node_ns = on_demand_ns + market.paid_ns(Market.SPOT)
    return FleetFigures(
        nodes=round(node_ns / trace.end_at_ns, 3),
        nodes_on_demand=round(on_demand_ns / trace.end_at_ns, 3),
        requests=len(run.requests),
        failed=len(run.requests) - len(done),
        attainment=round(met / len(run.requests), 4),
        usd_per_1k_tokens=1_000 * cost_usd(run) / tokens,
    )


def workloads(
    traces: Sequence[str], loads: Sequence[str], seeds: Sequence[int]
) -> Iterator[Setting]:
    """Yield every load, `model:requests/s`, on every trace. Raises: ConfigError."""
    for trace in traces:
        for load in loads:
            model, _, rate = load.partition(":")
            if model not in LEAST_REPLICAS or not rate.replace(".", "", 1).isdigit():
                raise ConfigError(f"load: {load!r} is no model and rate such as {LOADS[0]}")
            for seed in seeds:
                yield Setting(
                    policy=PolicyName.TIDESERVE,
                    spot_trace=trace,
                    model=model,
                    arrivals="poisson",
                    requests_per_s=float(rate),
                    seed=seed,
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare every workload, print the table and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--spot-trace", action="append", help="name or file; default: A_S and B_S")
    parser.add_argument("--load", action="append", help=f"default: {' and '.join(LOADS)}")
    parser.add_argument("--seeds", default="1", help="comma-separated (default %(default)s)")
    parser.add_argument("--nodes-extra", type=int, default=0, help="spare spot nodes (default 0)")
    given = parser.parse_args(arguments)
    seeds = seeds_of(given.seeds)
    settings = list(workloads(given.spot_trace or ["A_S", "B_S"], given.load or LOADS, seeds))
    capacity = CapacityOptions(
        nodes_max=NODES_MAX, nodes_extra=given.nodes_extra, workers_per_node=4
    )
    known = rows_kept(given.json, commit=str(provenance("")["commit"]))
    rows: list[Row] = []
    for number, setting in enumerate(settings, start=1):
        row = known.get(workload_of(setting, capacity))
        rows.append(compare(setting, capacity) if row is None else row)
        done = f"{number} of {len(settings)}: {rows[-1].workload} costs {rows[-1].cost_ratio:.3f}"
        print(done, file=sys.stderr)
        if given.json is not None:
            keep(rows, given.json)
    RESULTS.print(_table(rows, ratio_of(rows)))
    return 0


def rows_kept(path: Path | None, *, commit: str) -> dict[Workload, Row]:
    """Return the rows of a record of this commit, from which a run goes on; none of another's.

    Nor of a changed checkout: nothing says that it was the same change.
    """
    if path is None or not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["commit"] != commit or commit.endswith("-dirty"):
        return {}
    rows = TypeAdapter(list[Row]).validate_python(record["cells"])
    return {row.workload: row for row in rows}


def keep(rows: Sequence[Row], path: Path) -> None:
    """Write the record of the rows so far."""
    cells = [{**asdict(row), "cost_ratio": round(row.cost_ratio, 4)} for row in rows]
    head = provenance("benchmarks.spot_cost")
    write_record({**head, "cost_ratio": asdict(ratio_of(rows)), "cells": cells}, path)


def ratio_of(rows: Sequence[Row]) -> Interval:
    """Return what a token costs on spot, as a part of what it costs on demand."""
    return geometric_mean([row.cost_ratio for row in rows])


def _table(rows: Sequence[Row], ratio: Interval) -> Table:
    table = Table("model", "trace", caption=f"cost by that on demand: {ratio}")
    for name in (
        "requests/s", "spare", "seed", "SLO s", "spot nodes", "on demand", "met", "failed",
        "USD / 1k tokens", "fleet on demand", "met", "one less", "USD / 1k tokens", "ratio",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        less = row.on_demand_one_less
        table.add_row(
            row.model,
            row.trace,
            f"{row.requests_per_s:g}",
            str(row.nodes_extra),
            str(row.seed),
            f"{row.slo_s:.1f}",
            f"{row.spot.nodes - row.spot.nodes_on_demand:.2f}",
            f"{row.spot.nodes_on_demand:.2f}",
            f"{row.spot.attainment:.2%}",
            str(row.spot.failed),
            f"{row.spot.usd_per_1k_tokens:.5f}",
            f"{row.on_demand.nodes:g}",
            f"{row.on_demand.attainment:.2%}",
            "" if less is None else f"{less.attainment:.2%}",
            f"{row.on_demand.usd_per_1k_tokens:.5f}",
            f"{row.cost_ratio:.3f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())

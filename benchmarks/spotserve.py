"""SpotServe's evaluation in the simulator, each figure beside the published one.

    python -m benchmarks.spotserve --json FILE [--part PART] [--seeds 1,2,3] [--spot-trace FILE]

    cells      3 models x 4 traces: spotserve, reparallelize, reroute, on-demand and tideserve
    cost       Figure 7: GPT-20B, latency and cost per token on spot and on 3 to 8 on-demand nodes
    arrivals   GPT-20B under arrivals of a true CV of 1, 4 and 8 (the paper's "6" is nearly even)
    load       Figure 8: GPT-20B under a load and a demand that change
    batching   the cells of the paper's policies under its artifact's new batching
    ablation   what is left of spotserve with a fixed shape, and of tideserve without continuous
               batching and without copying ahead
    long       GPT-20B under Poisson arrivals on a whole trace, given as a file

Over several seeds the gains of `tideserve` are geometric means: of the cells of each seed first,
then of the seeds, with a 95 % confidence interval over those.

What bounds it: a run is arithmetic over events; one takes one to three seconds of one core, most of
it in the scheduler's steps under tideserve. What is assumed stands in docs/SIMULATION.md.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.gains import Interval, geometric_mean
from benchmarks.provenance import provenance, record_parser, write_record
from benchmarks.spotserve_published import (
    ON_DEMAND_USD_PER_1K_TOKENS,
    PUBLISHED,
    SPOT_USD_PER_1K_TOKENS,
    published_of,
)
from libs.kernel.errors import ConfigError
from services.launcher.console import RESULTS
from services.simulator.spot.options import EngineKind
from services.simulator.spot.outcome import SpotOutcome, outcome_of
from services.simulator.spot.run import run_spot
from services.simulator.spot.setting import PolicyName, Setting, run_options

Row = dict[str, str | int | float | None]
LOADS: Final = ("A'_S+O", "B'_S+O")
ALL_ARRIVALS: Final = "all"
CELL: Final = ("seed", "model", "trace", "on_demand_nodes", "cv")
"""What rows have in common that are compared."""


def cells(seeds: Sequence[int]) -> Iterator[Setting]:
    """Yield the twelve cells under every policy."""
    for model, trace in PUBLISHED:
        for policy in PolicyName:
            for seed in seeds:
                yield Setting(policy=policy, spot_trace=trace, model=model, seed=seed)


def cost(seeds: Sequence[int]) -> Iterator[Setting]:
    """Yield Figure 7. On demand each policy runs beside B_S, for its 1,020 s."""
    for policy in (PolicyName.SPOTSERVE, PolicyName.TIDESERVE):
        for seed in seeds:
            for trace in SPOT_USD_PER_1K_TOKENS:
                yield Setting(policy=policy, spot_trace=trace, seed=seed)
            for nodes in ON_DEMAND_USD_PER_1K_TOKENS:
                yield Setting(policy=policy, spot_trace="B_S", on_demand_nodes=nodes, seed=seed)


def arrivals(seeds: Sequence[int]) -> Iterator[Setting]:
    """Yield GPT-20B on A_S and B_S under arrivals that are as uneven as their name says."""
    for trace in ("A_S", "B_S"):
        for shape in ("poisson", "gamma:4", "gamma:8"):
            for policy in PolicyName:
                for seed in seeds:
                    yield Setting(policy=policy, spot_trace=trace, arrivals=shape, seed=seed)


def load(seeds: Sequence[int]) -> Iterator[Setting]:
    """Yield Figure 8. On demand there is no such fleet: it would have to follow the load."""
    for trace in LOADS:
        for policy in PolicyName:
            for seed in seeds:
                if policy is not PolicyName.ON_DEMAND:
                    yield Setting(policy=policy, spot_trace=trace, seed=seed)


def batching(seeds: Sequence[int]) -> Iterator[Setting]:
    """Yield the cells with nothing sent ahead to busy replicas."""
    paper = (PolicyName.SPOTSERVE, PolicyName.REPARALLELIZE, PolicyName.REROUTE)
    for setting in cells(seeds):
        if setting.policy in paper:
            yield replace(setting, batches_ahead=0)


def ablation(seeds: Sequence[int]) -> Iterator[Setting]:
    """Yield GPT-20B on A_S and B_S, whole and with one part after another taken away."""
    for trace in ("A_S", "B_S"):
        for seed in seeds:
            whole = Setting(policy=PolicyName.SPOTSERVE, spot_trace=trace, seed=seed)
            yield whole
            yield replace(whole, is_shape_fixed=True)
            ours = replace(whole, policy=PolicyName.TIDESERVE)
            yield ours
            yield replace(ours, is_shape_fixed=True)
            yield replace(whole, engine=EngineKind.CONTINUOUS)
            yield replace(ours, engine=EngineKind.PAPER)


def long(seeds: Sequence[int]) -> Iterator[Setting]:
    """Yield GPT-20B under every policy that lives on spot nodes; the trace is given apart."""
    for policy in PolicyName:
        for seed in seeds:
            if policy is not PolicyName.ON_DEMAND:
                yield Setting(policy=policy, arrivals="poisson", seed=seed)


PARTS: Final[Mapping[str, Callable[[Sequence[int]], Iterator[Setting]]]] = {
    "cells": cells,
    "cost": cost,
    "arrivals": arrivals,
    "load": load,
    "batching": batching,
    "ablation": ablation,
    "long": long,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """How many times the P99 of `tideserve` another policy's is."""

    arrivals: str
    """Of the cells; or ALL_ARRIVALS."""
    over: str
    gain: Interval


def measure(setting: Setting) -> Row:
    """Run one cell under one policy."""
    outcome = outcome_of(run_spot(run_options(setting)), policy=setting.policy.value)
    return row_of(setting, outcome)


def row_of(setting: Setting, outcome: SpotOutcome) -> Row:
    """Put the figures of a run beside the published ones."""
    published = published_of(setting)
    return {
        "model": setting.model,
        "trace": Path(setting.spot_trace).name,
        "policy": setting.policy.value,
        "cv": setting.arrivals,
        "seed": setting.seed,
        "on_demand_nodes": setting.on_demand_nodes,
        "engine": "" if setting.engine is None else setting.engine.value,
        "is_shape_fixed": setting.is_shape_fixed,
        "batches_ahead": setting.batches_ahead,
        "requests": outcome.requests,
        "failed": outcome.failed,
        "avg_s": outcome.avg_s,
        "p99_s": outcome.p99_s,
        "ttft_p99_s": outcome.ttft_p99_s,
        "usd_per_1k_tokens": outcome.usd_per_1k_tokens,
        "tokens_recomputed": outcome.tokens_recomputed,
        "handovers_done": outcome.handovers_done,
        "handovers_abandoned": outcome.handovers_abandoned,
        "paper_avg_s": published.avg_s,
        "paper_p99_s": published.p99_s,
        "paper_p99_over_spotserve": published.p99_over_spotserve,
        "paper_usd_per_1k_tokens": published.usd_per_1k_tokens,
        "digest": outcome.digest,
    }


def p99_over_spotserve(row: Row, rows: Sequence[Row]) -> float | None:
    """Return how many times the P99 of spotserve in the same cell this row's is."""
    same = [
        other
        for other in rows
        if other["policy"] == PolicyName.SPOTSERVE.value
        and not other["engine"]
        and not other["is_shape_fixed"]
        and all(other[name] == row[name] for name in CELL)
    ]
    if not same or not same[0]["p99_s"]:
        return None
    return round(float(row["p99_s"] or 0) / float(same[0]["p99_s"]), 2)


def gains_of(rows: Sequence[Row]) -> list[Gain]:
    """Average the gains of `tideserve` over each policy, by arrivals and, if several, over all."""
    shapes = list(dict.fromkeys(str(row["cv"]) for row in rows))
    groups = [*((shape, [r for r in rows if r["cv"] == shape]) for shape in shapes)]
    if len(shapes) > 1:
        groups.append((ALL_ARRIVALS, list(rows)))
    return [
        Gain(arrivals=name, over=over, gain=gain)
        for name, group in groups
        for over in (p.value for p in PolicyName if p is not PolicyName.TIDESERVE)
        if (gain := _gain(group, over=over)) is not None
    ]


def _gain(rows: Sequence[Row], *, over: str) -> Interval | None:
    p99_s: dict[tuple[object, ...], dict[str, float]] = {}
    for row in rows:
        cell = tuple(row[name] for name in CELL)
        p99_s.setdefault(cell, {})[str(row["policy"])] = float(row["p99_s"] or 0)
    by_seed: dict[object, list[float]] = {}
    for (seed, *_), of_policy in p99_s.items():
        if over in of_policy and of_policy.get(PolicyName.TIDESERVE.value):
            ratio = of_policy[over] / of_policy[PolicyName.TIDESERVE.value]
            by_seed.setdefault(seed, []).append(ratio)
    if not by_seed:
        return None
    return geometric_mean([geometric_mean(ratios).mean for ratios in by_seed.values()])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a part, print its table and write the record."""
    parser = record_parser(__doc__)
    parser.add_argument("--part", choices=sorted(PARTS), default="cells")
    parser.add_argument("--seeds", default="1", help="comma-separated (default %(default)s)")
    parser.add_argument("--spot-trace", help="a file, in place of the part's own traces")
    given = parser.parse_args(arguments)
    if given.part == "long" and given.spot_trace is None:
        raise ConfigError("spot trace: the part `long` needs a file of node events")
    settings = list(PARTS[given.part](seeds_of(given.seeds)))
    if given.spot_trace is not None:
        settings = list(dict.fromkeys(replace(s, spot_trace=given.spot_trace) for s in settings))
    rows: list[Row] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("simulating", total=len(settings))
        for setting in settings:
            rows.append(measure(setting))
            progress.advance(task)
    for row in rows:
        row["p99_over_spotserve"] = p99_over_spotserve(row, rows)
    gains = [] if given.part == "ablation" else gains_of(rows)
    RESULTS.print(_table(rows))
    for gain in gains:
        RESULTS.print(f"{gain.arrivals}: P99 of {gain.over} by that of tideserve {gain.gain}")
    if given.json is not None:
        head = {**provenance("benchmarks.spotserve"), "part": given.part}
        told = [asdict(gain) for gain in gains]
        write_record({**head, "gains": told, "cells": rows}, given.json)
    return 0


def seeds_of(text: str) -> list[int]:
    """Read a list of seeds. Raises: ConfigError."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"seeds: {text!r} is not a list of whole numbers") from None
    return seeds


def _table(rows: Sequence[Row]) -> Table:
    table = Table("model", "trace", "policy", "arrivals", "seed")
    for name in ("avg s", "paper", "P99 s", "paper", "P99 / spotserve", "paper", "failed"):
        table.add_column(name, justify="right")
    table.add_column("USD / 1k tokens", justify="right")
    table.add_column("paper", justify="right")
    for row in rows:
        policy = " ".join(
            part
            for part in (
                str(row["policy"]),
                str(row["engine"]),
                "fixed shape" if row["is_shape_fixed"] else "",
                f"on {row['on_demand_nodes']} nodes" if row["on_demand_nodes"] else "",
            )
            if part
        )
        paper_usd = row["paper_usd_per_1k_tokens"]
        names = ("avg_s", "paper_avg_s", "p99_s", "paper_p99_s", "p99_over_spotserve")
        table.add_row(
            str(row["model"]),
            str(row["trace"]),
            policy,
            str(row["cv"]),
            str(row["seed"]),
            *(_number(row[name]) for name in (*names, "paper_p99_over_spotserve")),
            str(row["failed"]),
            f"{float(row['usd_per_1k_tokens'] or 0):.5f}",
            "" if paper_usd is None else f"{float(paper_usd):.5f}",
        )
    return table


def _number(value: str | float | None) -> str:
    return "" if value is None else f"{float(value):.2f}"


if __name__ == "__main__":
    sys.exit(main())

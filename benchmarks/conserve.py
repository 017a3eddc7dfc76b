"""ConServe's comparison in the simulator, each figure beside the published one.

    python -m benchmarks.conserve --json FILE [--model M] [--workload W] [--policy P] [--jobs N]
    python -m benchmarks.conserve --replay LIVE.json --json FILE

Three models on H100s under two online traces, an offline backlog without end beside them, and every
policy of `--coserve`: the live worker core in virtual time (benchmarks/conserve_cell.py says what a
cell is, docs/SIMULATION.md what is assumed). `--replay` takes the record of `bench coserve` and
simulates that very run instead: what is predicted stands beside what was measured.

What bounds it: the scheduler's arithmetic, some 100 us of one core for each token that is decoded;
a cell of 400 online requests takes minutes. Cells are independent: `--jobs` runs some at a time.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final

from benchmarks.conserve_cell import BUSY_SHARE, CellOptions, CellResult, PolicyResult, measure_cell
from benchmarks.conserve_load import OFFLINE, WORKLOADS, ConserveLoad
from benchmarks.conserve_published import GOALS, OFFLINE_TOK_S, ONLINE_P99_MS
from benchmarks.conserve_record import read_live_record
from benchmarks.conserve_tables import Row, causes_table, goals_table, policies_table, replay_table
from benchmarks.coserve_causes import slowest_waits, time_shares
from benchmarks.provenance import provenance, write_record
from libs.engine.scheduling.coserve import Coserve
from libs.kernel.errors import ConfigError
from libs.kernel.units import milliseconds, seconds
from services.launcher.console import RESULTS
from services.simulator.coserve.h100 import MODELS
from services.simulator.coserve.run import CoserveOutcome

OURS: Final = Coserve.TIDESERVE.value
BASELINE: Final = Coserve.ONLINE_ONLY.value
RATIOS: Final = (
    ("total_over_online_only", "total_tok_s", BASELINE),
    ("ttft_p99_over_online_only", "online_ttft_p99_ms", BASELINE),
    ("tbt_p99_over_online_only", "online_tbt_p99_ms", BASELINE),
    ("total_over_non_preemptive", "total_tok_s", Coserve.NON_PREEMPTIVE.value),
    ("offline_over_non_preemptive", "offline_tok_s", Coserve.NON_PREEMPTIVE.value),
)
"""(name, column, policy whose value divides)."""
CELL: Final = ("model", "workload", "offline")
FIGURES: Final = (
    "policy",
    "online_ttft_p50_ms",
    "online_ttft_p99_ms",
    "online_tbt_p99_ms",
    "offline_tok_s",
    "total_tok_s",
    "slo_attainment",
    "online_requests",
    "steps_yielded",
    "tokens_yielded",
    "tokens_repeated",
    "evictions_stored",
    "evictions_recomputed",
    "prediction_bias",
)
"""Of a CoserveRow; its other fields are of the live engine alone."""


def rows_of(options: CellOptions, result: CellResult) -> list[Row]:
    """Put the policies of a cell side by side."""
    rows: list[Row] = [
        {
            "model": options.model.name,
            "workload": options.load.workload,
            "offline": options.load.offline,
            **_figures(of),
            **_causes(of.outcome, alone=result.results[0].outcome),
            "ttft_slo_ms": round(milliseconds(result.slos.ttft_ns), 2),
            "tbt_slo_ms": round(milliseconds(result.slos.tbt_ns), 2),
            "trace_speed": round(result.speed, 4),
            "profile_error": round(result.profile.error, 4),
            **_published(options.model.name, of.policy.value),
        }
        for of in result.results
    ]
    by_policy = {row["policy"]: row for row in rows}
    for row in rows:
        for name, column, divisor in RATIOS:
            row[name] = _ratio(row, by_policy.get(divisor), column)
    return rows


def goals_of(rows: Sequence[Row]) -> list[Row]:
    """Hold each cell against the published ratios, as far as its policies were simulated."""
    found: list[Row] = []
    for ours in rows:
        if ours["policy"] != OURS:
            continue
        of_cell = {row["policy"]: row for row in rows if all(row[n] == ours[n] for n in CELL)}
        for goal in GOALS:
            theirs = of_cell.get(goal.of)
            if theirs is None:
                continue
            better, worse = (theirs, ours) if goal.is_lower_better else (ours, theirs)
            found.append(
                {
                    **{name: ours[name] for name in CELL},
                    "figure": goal.figure,
                    "tideserve": _ratio(better, worse, goal.column),
                    "published": goal.value,
                    "source": goal.source,
                }
            )
    return found


def measure(
    options: Sequence[CellOptions], *, jobs: int, report: Callable[[str], None]
) -> list[Row]:
    """Simulate the cells, so many at a time; rows come in the order of the cells."""
    if jobs == 1:
        return [row for each in options for row in rows_of(each, measure_cell(each, report=report))]
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        results = pool.map(partial(measure_cell, report=report), options)
        return [
            row
            for each, result in zip(options, results, strict=True)
            for row in rows_of(each, result)
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print the tables and write the record."""
    given = _parser().parse_args(arguments)
    if given.replay is not None:
        found = _replay(given.replay, trace=given.trace)
    else:
        rows = measure(list(_cells(given)), jobs=given.jobs, report=_report)
        goals = goals_of(rows)
        RESULTS.print(policies_table(rows))
        RESULTS.print(causes_table(rows))
        RESULTS.print(goals_table(goals))
        found = {"rows": rows, "goals": goals}
    if given.json is not None:
        write_record({**found, "record": provenance("benchmarks.conserve")}, given.json)
    return 0


def _replay(path: Path, *, trace: Path | None) -> dict[str, object]:
    live = read_live_record(path)
    # Its engine brings torch, which nothing else here needs.
    from benchmarks.conserve_replay import replay

    rows = [asdict(row) for row in replay(live, trace=trace, report=_report)]
    near = sum(bool(row["is_near"]) for row in rows)
    RESULTS.print(replay_table(rows))
    RESULTS.print(f"{near} of {len(rows)} figures are as near as they should be")
    return {
        "rows": rows,
        "live_commit": live.record.commit,
        "live_options": live.record.options.model_dump(),
    }


def _figures(of: PolicyResult) -> Row:
    outcome, row = of.outcome, of.row
    return {
        **{name: getattr(row, name) for name in FIGURES},
        "online_unanswered": sum(not served.is_answered for served in outcome.served),
        "busy_share": round(outcome.busy_share, 4),
        "copying_share": round(outcome.copying_share, 4),
        "elapsed_s": round(seconds(outcome.elapsed_ns), 1),
        "preemptions": outcome.tally.preemptions,
        "blocks_stored": outcome.checkpoints.blocks_stored,
        "blocks_loaded": outcome.checkpoints.blocks_loaded,
        "digest": outcome.digest,
    }


def _causes(outcome: CoserveOutcome, *, alone: CoserveOutcome) -> Row:
    waits, shares = slowest_waits(outcome, alone=alone), time_shares(outcome)
    return {
        **{
            f"slowest_{name.removesuffix('_ns')}_ms": round(milliseconds(ns), 2)
            for name, ns in asdict(waits).items()
        },
        **{f"time_{name}": round(share, 4) for name, share in asdict(shares).items()},
    }


def _published(model: str, policy: str) -> Row:
    ttft_ms, tbt_ms = ONLINE_P99_MS.get((model, policy), (None, None))
    return {
        "paper_offline_tok_s": OFFLINE_TOK_S.get((model, policy)),
        "paper_online_ttft_p99_ms": ttft_ms,
        "paper_online_tbt_p99_ms": tbt_ms,
    }


def _ratio(row: Row, divisor: Row | None, column: str) -> float | None:
    if divisor is None or not divisor[column]:
        return None
    return round(float(row[column] or 0) / float(divisor[column] or 0), 3)


def _cells(given: argparse.Namespace) -> Iterator[CellOptions]:
    workloads = given.workload or list(WORKLOADS)
    if given.trace is not None:
        workloads = [given.trace.stem]
    for model, workload in product(given.model or list(MODELS), workloads):
        if model not in MODELS:
            raise ConfigError(f"--model: {model!r} is none of {', '.join(MODELS)}")
        yield CellOptions(
            model=MODELS[model],
            load=ConserveLoad(
                workload=workload,
                trace=given.trace,
                offline=given.offline,
                requests=given.requests,
                seed=given.seed,
            ),
            policies=tuple(Coserve(policy) for policy in given.policy or list(Coserve)),
            busy_share=given.busy_share,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tideserve bench conserve", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--json", type=Path, help="file for the record")
    parser.add_argument("--replay", type=Path, help="record of `bench coserve` to simulate")
    parser.add_argument("--model", action="append", help=f"repeatable: {', '.join(MODELS)}")
    parser.add_argument("--workload", action="append", help=f"repeatable: {', '.join(WORKLOADS)}")
    parser.add_argument(
        "--trace",
        type=Path,
        help="published trace instead of the workloads; with --replay, where it lies now",
    )
    parser.add_argument("--offline", default="sharegpt", help=", ".join(OFFLINE))
    policies = [policy.value for policy in Coserve]
    parser.add_argument(
        "--policy", action="append", choices=policies, help="repeatable; default: all"
    )
    parser.add_argument("--requests", type=_positive, default=400, help="online, of each cell")
    parser.add_argument(
        "--busy-share",
        type=_share,
        default=BUSY_SHARE,
        help="of time that online work alone keeps the engine busy (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=_positive, default=1, help="cells at a time")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError("must lie between 0 and 1")
    return share


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

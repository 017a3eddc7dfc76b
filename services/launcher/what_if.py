"""`tideserve simulate what-if`: what a fleet past any machine would cost over a day, and do."""

import os
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from libs.policy.paper_profiles import PAPER_PROFILES
from services.launcher.console import PROGRESS, RESULTS, show, show_json
from services.launcher.options import AsJson
from services.simulator.spot.hardware import HARDWARE
from services.simulator.what_if.run import Answer, answer, compared_cells
from services.simulator.what_if.scenario import Buying, Scenario


def what_if(
    gpus: Annotated[int, typer.Option(help="That may be rented at a time, of both markets.")],
    requests_per_day: Annotated[float, typer.Option(help="Such as 1e7.")],
    hours: Annotated[float, typer.Option(help="How long; demand begins at its lowest.")] = 24.0,
    peak: Annotated[float, typer.Option(help="Demand at its height over its mean, 1 to 2.")] = 1.5,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(PAPER_PROFILES)}.")] = "gpt-20b",
    hardware: Annotated[str, typer.Option(help=f"One of {', '.join(HARDWARE)}.")] = (
        "g4dn.12xlarge"
    ),
    cell_gpus: Annotated[int, typer.Option(help="Of one cell, with its own planner.")] = 100,
    regions: Annotated[int, typer.Option(help="Each cell lies in one.")] = 2,
    zones: Annotated[int, typer.Option(help="Of each region; a cell uses all of them.")] = 3,
    shortages: Annotated[
        float, typer.Option(help="Of spot capacity that begin in a region in a day.")
    ] = 24.0,
    slo_s: Annotated[
        float | None,
        typer.Option(help="From arrival to last token; default: twice a lone request's."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal answers.")] = 1,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one for each core.")
    ] = None,
    is_json: AsJson = False,
) -> None:
    """Ask what a fleet of any size would cost on spot, and on demand; see docs/SIMULATION.md."""
    scenario = Scenario(
        gpus=gpus,
        requests_per_day=requests_per_day,
        hours=hours,
        peak=peak,
        model=model,
        hardware=hardware,
        cell_gpus=cell_gpus,
        regions=regions,
        zones_per_region=zones,
        shortages_per_day=shortages,
        slo_s=slo_s,
        seed=seed,
    )
    processes = jobs or len(os.sched_getaffinity(0))
    compared = compared_cells(scenario)
    answers = [
        _ask(scenario, Buying.SPOT, list(range(scenario.cells)), jobs=processes),
        _ask(scenario, Buying.ON_DEMAND, compared, jobs=processes),
    ]
    if is_json:
        show_json({"answers": [each.as_json() for each in answers]})
    else:
        RESULTS.print(_table(scenario, answers))
        show(_verdict(*answers))
    if any(each.failed for each in answers):
        raise typer.Exit(1)


def _ask(scenario: Scenario, buying: Buying, cells: list[int], *, jobs: int) -> Answer:
    with Progress(console=PROGRESS, transient=True) as progress:
        task = progress.add_task(f"{buying.value}: cells", total=len(cells))
        return answer(
            scenario, buying=buying, cells=cells, jobs=jobs,
            on_cell=lambda done: progress.update(task, completed=done),
        )  # fmt: skip


def _table(scenario: Scenario, answers: Sequence[Answer]) -> Table:
    table = Table(
        "market",
        title=f"{scenario.model} on at most {scenario.gpus:,} GPUs, "
        f"{scenario.requests_per_day:,.0f} requests a day",
    )
    for name in (
        "cells", "GPUs, mean", "of it spot", "requests", "failed", "in SLO", "P50 s", "P99 s",
        "TTFT P99 s", "USD", "USD / 1M tokens", "preempted", "hand-overs",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for each in answers:
        table.add_row(
            each.buying.value,
            str(each.cells),
            f"{each.gpus_mean:,.0f}",
            f"{each.spot_share:.1%}",
            f"{each.requests:,}",
            str(each.failed),
            f"{each.slo_attained:.2%}",
            f"{each.p50_s:.1f}",
            f"{each.p99_s:.1f}",
            f"{each.ttft_p99_s:.1f}",
            f"{each.usd:,.0f}",
            f"{each.usd_per_million_tokens:.2f}",
            f"{each.nodes_preempted:,}",
            f"{each.handovers:,}",
        )
    return table


def _verdict(spot: Answer, on_demand: Answer) -> str:
    share = spot.usd_per_million_tokens / max(1e-9, on_demand.usd_per_million_tokens)
    return (
        f"A million tokens cost {share:.2f} of what they cost on demand; "
        f"{spot.slo_attained:.2%} of the requests end within {spot.slo_s:g} s, "
        f"on demand {on_demand.slo_attained:.2%}."
    )

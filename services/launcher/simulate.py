"""`tideserve simulate`: a fleet under a spot trace, in virtual time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from libs.policy.paper_profiles import PAPER_PROFILES
from services.launcher.console import PROGRESS, RESULTS, show, show_json
from services.launcher.options import AsJson
from services.launcher.what_if import what_if
from services.simulator.spot.files import write_comparison, write_run
from services.simulator.spot.hardware import HARDWARE
from services.simulator.spot.options import EngineKind
from services.simulator.spot.outcome import SpotOutcome, outcome_of
from services.simulator.spot.run import SpotRun, run_spot
from services.simulator.spot.setting import PolicyName, Setting, run_options

app = typer.Typer(invoke_without_command=True)
app.command("what-if")(what_if)


@app.callback()
def simulate(
    context: typer.Context,
    policies: Annotated[
        list[PolicyName] | None,
        typer.Option("--policy", help="Repeatable; several are compared. Default: tideserve."),
    ] = None,
    spot_trace: Annotated[
        str, typer.Option(help="A_S, B_S, A_S+O, B_S+O, A'_S+O, B'_S+O, or a file of node events.")
    ] = "A_S",
    model: Annotated[str, typer.Option(help=f"One of {', '.join(PAPER_PROFILES)}.")] = "gpt-20b",
    hardware: Annotated[str, typer.Option(help=f"One of {', '.join(HARDWARE)}.")] = (
        "g4dn.12xlarge"
    ),
    workload: Annotated[
        Path | None, typer.Option(help="A file of requests; default: 512 tokens in, 128 out.")
    ] = None,
    arrivals: Annotated[str, typer.Option(help="paper, poisson or gamma:CV.")] = "paper",
    rate: Annotated[
        float | None, typer.Option(help="Requests per second; default: the paper's.")
    ] = None,
    engine: Annotated[
        EngineKind | None, typer.Option(help="How replicas batch; default: the policy's own.")
    ] = None,
    launch_s: Annotated[
        float | None, typer.Option(help="Added to additions of a trace of requested nodes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal histories.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for event log, Chrome trace, figures and plots.")
    ] = None,
    story: Annotated[
        str, typer.Option(help="Print what befell this node, replica, hand-over or request.")
    ] = "",
    is_json: AsJson = False,
) -> None:
    """Run the fleet's deciding cores under virtual time; see docs/SIMULATION.md."""
    if context.invoked_subcommand is not None:
        return
    runs: list[tuple[str, SpotRun]] = []
    outcomes: list[SpotOutcome] = []
    for policy in policies or [PolicyName.TIDESERVE]:
        setting = Setting(
            policy=policy,
            spot_trace=spot_trace,
            model=model,
            hardware=hardware,
            seed=seed,
            arrivals=arrivals,
            workload=workload,
            engine=engine,
            requests_per_s=rate,
            launch_s=launch_s,
        )
        run = _run(setting)
        runs.append((policy.value, run))
        outcomes.append(outcome_of(run, policy=policy.value))
        if out is not None:
            write_run(run, name=policy.value, folder=out)
    if out is not None:
        write_comparison(runs, outcomes, folder=out)
    if is_json:
        show_json({"runs": [outcome.as_json() for outcome in outcomes]})
    else:
        RESULTS.print(_table(outcomes))
    if story:
        _show_story(runs, entity=story)
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


def _run(setting: Setting) -> SpotRun:
    options = run_options(setting)
    with Progress(console=PROGRESS, transient=True) as progress:
        task = progress.add_task(setting.policy.value, total=100)
        return run_spot(options, on_progress=lambda part: progress.update(task, completed=part))


def _show_story(runs: Sequence[tuple[str, SpotRun]], *, entity: str) -> None:
    for name, run in runs:
        show(f"{name}: {entity}")
        for happening in run.fleet.log.story(entity):
            show(happening.text_line())


def _table(outcomes: Sequence[SpotOutcome]) -> Table:
    table = Table("policy", title=f"{outcomes[0].model} on {outcomes[0].trace}")
    for name in (
        "requests", "failed", "avg s", "P50 s", "P99 s", "TTFT P99 s", "USD / 1k tokens",
        "hand-overs", "given up", "KV GB", "weights GB", "from disk GB", "recomputed",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for outcome in outcomes:
        table.add_row(
            outcome.policy,
            str(outcome.requests),
            str(outcome.failed),
            f"{outcome.avg_s:.2f}",
            f"{outcome.p50_s:.2f}",
            f"{outcome.p99_s:.2f}",
            f"{outcome.ttft_p99_s:.2f}",
            f"{outcome.usd_per_1k_tokens:.5f}",
            str(outcome.handovers_done),
            str(outcome.handovers_abandoned),
            f"{outcome.kv_gb_moved:.1f}",
            f"{outcome.weights_gb_from_peers:.1f}",
            f"{outcome.weights_gb_from_disk:.1f}",
            str(outcome.tokens_recomputed),
        )
    return table

"""`tideserve bench`: the published tables."""

from pathlib import Path
from typing import Annotated

import typer

from libs.kernel.errors import ConfigError

NOT_IN_A_WHEEL = "bench: the benchmarks are part of a checkout, not of a wheel"

app = typer.Typer(help="Measure; one command per published table.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure; one command per published table."""


@app.command()
def engine(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows to this file as JSON.")
    ] = None,
) -> None:
    """Compare this engine with transformers' generate and generate_batch, interleaved."""
    try:
        # Imported here: it brings torch and transformers, which take seconds.
        from benchmarks.engine import main as measure
    except ImportError as error:
        raise ConfigError(NOT_IN_A_WHEEL) from error
    exit_code = measure(["--json", str(json_file)] if json_file is not None else [])
    if exit_code:
        raise typer.Exit(exit_code)


@app.command("live-spot")
def live_spot(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write rows and runs to this file as JSON.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Runs of each policy.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Of arrivals and prompts.")] = 7,
) -> None:
    """Compare the policies on real processes: same arrivals, same notices; about 20 minutes."""
    try:
        from benchmarks.live_spot import main as measure
    except ImportError as error:
        raise ConfigError(NOT_IN_A_WHEEL) from error
    arguments = ["--pairs", str(pairs), "--seed", str(seed)]
    exit_code = measure(arguments + (["--json", str(json_file)] if json_file is not None else []))
    if exit_code:
        raise typer.Exit(exit_code)

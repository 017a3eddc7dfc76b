"""`tideserve bench`: the published tables."""

from pathlib import Path
from typing import Annotated

import typer

from libs.kernel.errors import ConfigError

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
        raise ConfigError("bench: the benchmarks are part of a checkout, not of a wheel") from error
    exit_code = measure(["--json", str(json_file)] if json_file is not None else [])
    if exit_code:
        raise typer.Exit(exit_code)

"""`tideserve bench`: the published tables."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from libs.kernel.errors import ConfigError

app = typer.Typer(help="Measure; one command per published table.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure; one command per published table."""


JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the rows to this file as JSON.")
]


@app.command()
def engine(json_file: JsonFile = None) -> None:
    """Compare this engine with transformers' generate and generate_batch, interleaved."""
    try:
        # Imported here: it brings torch and transformers, which take seconds.
        from benchmarks.engine import main as measure
    except ImportError as error:
        raise _not_in_a_wheel() from error
    _run(measure, json_file)


@app.command()
def transfer(json_file: JsonFile = None) -> None:
    """Measure KV transfers between two processes, beside what bounds them."""
    try:
        from benchmarks.transfer import main as measure
    except ImportError as error:
        raise _not_in_a_wheel() from error
    _run(measure, json_file)


def _not_in_a_wheel() -> ConfigError:
    return ConfigError("bench: the benchmarks are part of a checkout, not of a wheel")


def _run(measure: Callable[[Sequence[str]], int], json_file: Path | None) -> None:
    exit_code = measure(["--json", str(json_file)] if json_file is not None else [])
    if exit_code:
        raise typer.Exit(exit_code)

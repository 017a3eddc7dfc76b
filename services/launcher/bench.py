"""`tideserve bench`: the published tables."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from libs.kernel.errors import ConfigError

JsonFile: TypeAlias = Annotated[
    Path | None, typer.Option("--json", help="Write rows and how they came about to this file.")
]

app = typer.Typer(help="Measure; one command per published table.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure; one command per published table."""


@app.command()
def engine(json_file: JsonFile = None) -> None:
    """Compare this engine with transformers' generate and generate_batch, interleaved."""
    _measure("engine", json_file)


@app.command()
def planner(json_file: JsonFile = None) -> None:
    """Time one plan (shape, mapping, order of layers) for fleets of 8 to 1024 GPUs."""
    _measure("planner", json_file)


@app.command()
def transfer(json_file: JsonFile = None) -> None:
    """Measure KV transfers between two processes, beside what bounds them."""
    _measure("transfer", json_file)


@app.command("live-spot")
def live_spot(
    json_file: JsonFile = None,
    pairs: Annotated[int, typer.Option(help="Runs of each policy.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Of arrivals and prompts.")] = 7,
) -> None:
    """Compare the policies on real processes: same arrivals, same notices; about 20 minutes."""
    _measure("live_spot", json_file, "--pairs", str(pairs), "--seed", str(seed))


def _measure(name: str, json_file: Path | None, *arguments: str) -> None:
    try:
        # Imported when asked for: some bring torch and transformers, which take seconds.
        module = import_module(f"benchmarks.{name}")
    except ImportError as error:
        raise ConfigError("bench: the benchmarks are part of a checkout, not of a wheel") from error
    main: Callable[[Sequence[str]], int] = module.main
    exit_code = main([*arguments, *(["--json", str(json_file)] if json_file is not None else [])])
    if exit_code:
        raise typer.Exit(exit_code)

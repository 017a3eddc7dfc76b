"""`tideserve bench`: the published tables."""

from pathlib import Path
from typing import Annotated, Final

import typer

from libs.kernel.errors import ConfigError
from services.launcher.state_file import DEFAULT_DATA_FOLDER, FleetState, find_nats_url

NOT_IN_A_WHEEL: Final = "bench: the benchmarks are part of a checkout, not of a wheel"

app = typer.Typer(help="Measure; one command per published table.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure; one command per published table."""


@app.command()
def soak(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows to this file as JSON.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Short requests through a whole fleet.")] = 10_000,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 40.0,
    streams: Annotated[int, typer.Option(help="Held open at once at the end.")] = 1_000,
) -> None:
    """Watch the memory of router, gateway and worker; exit code 1 if it grows or is too much."""
    try:
        from benchmarks.soak import main as measure
    except ImportError as error:
        raise ConfigError(NOT_IN_A_WHEEL) from error
    given = [f"--requests={requests}", f"--rate={rate}", f"--streams={streams}"]
    _end(measure([*given, *_json_arguments(json_file)]))


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def load(
    context: typer.Context,
    data_folder: Annotated[
        Path, typer.Option("--data-dir", help="Of the running fleet, if no --nats and no --http.")
    ] = DEFAULT_DATA_FOLDER,
) -> None:
    """Send load to the running fleet and check every answer; options of `python -m loadgen run`."""
    try:
        from benchmarks.load import main as measure
    except ImportError as error:
        raise ConfigError(NOT_IN_A_WHEEL) from error
    arguments = list(context.args)
    if not any(name in given for given in arguments for name in ("--nats", "--http", "--help")):
        arguments += ["--nats", find_nats_url(None, data_folder)]
        state = FleetState.read(data_folder)
        if state is not None and "--model" not in arguments:
            arguments += ["--model", state.alias]
    _end(measure(arguments))


@app.command()
def engine(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows to this file as JSON.")
    ] = None,
    has_peers: Annotated[
        bool, typer.Option("--peers", help="Add vLLM's CPU build, at 32 requests at once.")
    ] = False,
    peers_python: Annotated[
        Path | None, typer.Option(help="Interpreter of the environment that has vLLM.")
    ] = None,
) -> None:
    """Compare this engine with transformers' generate and generate_batch, interleaved."""
    if has_peers and peers_python is None:
        raise ConfigError("--peers: needs --peers-python; `make peers` makes such an environment")
    peers = ["--batch", "32", "--peers-python", str(peers_python)] if has_peers else []
    try:
        # Imported here: it brings torch and transformers, which take seconds.
        from benchmarks.engine import main as measure
    except ImportError as error:
        raise ConfigError(NOT_IN_A_WHEEL) from error
    _end(measure([*peers, *_json_arguments(json_file)]))


def _json_arguments(json_file: Path | None) -> list[str]:
    return [] if json_file is None else ["--json", str(json_file)]


def _end(exit_code: int) -> None:
    if exit_code:
        raise typer.Exit(exit_code)

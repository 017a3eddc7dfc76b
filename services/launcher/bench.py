"""`tideserve bench`: the published tables."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from libs.kernel.errors import ConfigError
from services.launcher.state_file import DEFAULT_DATA_FOLDER, FleetState, find_nats_url

JsonFile: TypeAlias = Annotated[
    Path | None, typer.Option("--json", help="Write rows and how they came about to this file.")
]

app = typer.Typer(help="Measure; one command per published table.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure; one command per published table."""


@app.command()
def engine(
    json_file: JsonFile = None,
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
    _measure("engine", *peers, json_file=json_file)


@app.command()
def planner(json_file: JsonFile = None) -> None:
    """Time one plan (shape, mapping, order of layers) for fleets of 8 to 1024 GPUs."""
    _measure("planner", json_file=json_file)


@app.command()
def transfer(json_file: JsonFile = None) -> None:
    """Measure KV transfers between two processes, beside what bounds them."""
    _measure("transfer", json_file=json_file)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def coserve(context: typer.Context) -> None:
    """Compare the policies of --coserve under online bursts; options of `-m benchmarks.coserve`."""
    _measure("coserve", *context.args)


@app.command(
    "live-spot",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def live_spot(context: typer.Context) -> None:
    """Compare the policies on real processes: same arrivals, same notices; about 30 minutes."""
    _measure("live_spot", *context.args)


@app.command("moved-streams")
def moved_streams(
    json_file: JsonFile = None,
    turns: Annotated[int, typer.Option(help="Runs of each policy.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 7,
) -> None:
    """Measure the pause of streams whose node is taken away, beside a re-prefill; 15 minutes."""
    _measure("moved_streams", "--turns", str(turns), "--seed", str(seed), json_file=json_file)


@app.command()
def spotserve(
    json_file: JsonFile = None,
    part: Annotated[
        str,
        typer.Option(help="cells, cost, arrivals, load, batching, ablation or long."),
    ] = "cells",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "1",
    spot_trace: Annotated[
        str | None, typer.Option(help="A file of node events, in place of the part's own.")
    ] = None,
) -> None:
    """Repeat SpotServe's evaluation in the simulator, beside the published figures."""
    trace = [] if spot_trace is None else ["--spot-trace", spot_trace]
    _measure("spotserve", "--part", part, "--seeds", seeds, *trace, json_file=json_file)


@app.command("spot-cost")
def spot_cost(
    json_file: JsonFile = None,
    spot_trace: Annotated[
        str | None, typer.Option(help="A named scenario or a file; default: A_S and B_S.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "1",
    nodes_extra: Annotated[int, typer.Option(help="Spare spot nodes.", min=0)] = 0,
    load: Annotated[
        list[str] | None, typer.Option(help="MODEL:REQUESTS_PER_S; may be repeated.")
    ] = None,
) -> None:
    """Simulate what a token costs on spot, beside the smallest on-demand fleet as good."""
    trace = [] if spot_trace is None else ["--spot-trace", spot_trace]
    loads = [word for one in load or () for word in ("--load", one)]
    given = ("--seeds", seeds, "--nodes-extra", str(nodes_extra))
    _measure("spot_cost", *given, *trace, *loads, json_file=json_file)


@app.command("spot-replay")
def spot_replay(
    live: Annotated[Path, typer.Argument(help="What `bench live-spot --json` wrote.")],
    profile: Annotated[Path, typer.Option(help="What `tideserve profile --out` wrote.")],
    json_file: JsonFile = None,
) -> None:
    """Simulate the runs of a live comparison, and show how far off the prediction is."""
    _measure("spot_replay", str(live), "--profile", str(profile), json_file=json_file)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def conserve(context: typer.Context) -> None:
    """Repeat ConServe's comparison in the simulator; options of `-m benchmarks.conserve`."""
    _measure("conserve", *context.args)


@app.command()
def soak(
    json_file: JsonFile = None,
    requests: Annotated[int, typer.Option(help="Short requests through a whole fleet.")] = 10_000,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 40.0,
    streams: Annotated[int, typer.Option(help="Held open at once at the end.")] = 1_000,
) -> None:
    """Watch the memory of router, gateway and worker; exit code 1 if it grows or is too much."""
    given = (f"--requests={requests}", f"--rate={rate}", f"--streams={streams}")
    _measure("soak", *given, json_file=json_file)


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
    arguments = list(context.args)
    if not any(name in given for given in arguments for name in ("--nats", "--http", "--help")):
        arguments += ["--nats", find_nats_url(None, data_folder)]
        state = FleetState.read(data_folder)
        if state is not None and "--model" not in arguments:
            arguments += ["--model", state.alias]
    _measure("load", *arguments)


def _measure(name: str, *arguments: str, json_file: Path | None = None) -> None:
    try:
        # Imported when asked for: some bring torch and transformers, which take seconds.
        module = import_module(f"benchmarks.{name}")
    except ImportError as error:
        raise ConfigError("bench: the benchmarks are part of a checkout, not of a wheel") from error
    main: Callable[[Sequence[str]], int] = module.main
    exit_code = main([*arguments, *(["--json", str(json_file)] if json_file is not None else [])])
    if exit_code:
        raise typer.Exit(exit_code)

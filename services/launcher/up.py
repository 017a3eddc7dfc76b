"""`tideserve up`: a fleet on this machine until Ctrl-C."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from libs.contracts.placement import Policy
from libs.engine.scheduling.coserve import Coserve
from libs.kernel.errors import ConfigError
from libs.runtime.profile_cache import AUTO, profile_file, read_measured
from services.launcher.console import say, show, show_json
from services.launcher.fleet import Fleet
from services.launcher.local_cloud import LocalCloud
from services.launcher.model_source import ModelSource, find_model
from services.launcher.paste import commands_to_paste
from services.launcher.recipes import FleetOptions, PlannedOptions, threads_per_worker
from services.launcher.state_file import DEFAULT_DATA_FOLDER

WORKERS_DEFAULT = 2

PlannerCount = Annotated[
    int, typer.Option(help="With --nodes: planners; one leads, the others stand by.", min=1)
]
MigratorCount = Annotated[
    int, typer.Option(help="With --nodes: migrators; one acts, the others stand by.", min=1)
]
PolicyChoice = Annotated[Policy, typer.Option(help="With --nodes: how the fleet follows them.")]
NodesProvisioned = Annotated[
    int,
    typer.Option(
        help="With --nodes: replace nodes that are lost, add up to so many; 0: never.", min=0
    ),
]
TransportChoice = Annotated[
    str, typer.Option(help="With --nodes, between workers: auto, tcp or ucx.")
]
CoserveChoice = Annotated[
    Coserve, typer.Option(help="How offline work shares the workers with online work.")
]
TtftSloMs = Annotated[
    int, typer.Option(help="Online work: time to its first token, to aim for and to count.", min=1)
]
TbtSloMs = Annotated[
    int, typer.Option(help="The same for the time between two tokens of an answer.", min=1)
]
ProfileChoice = Annotated[
    str,
    typer.Option(
        help="What `tideserve profile` measured: its file, none, or auto: if there is one."
    ),
]
DataFolder = Annotated[
    Path, typer.Option("--data-dir", help="Journal, logs and state of the fleet.")
]
ApiKeysFile = Annotated[
    Path | None,
    typer.Option(
        "--api-keys", help="File of who may ask over HTTP: lines of KEY [TENANT].", dir_okay=False
    ),
]
HttpPort = Annotated[int, typer.Option(help="Port of the HTTP API; 0 takes a free one.")]
ReadyJson = Annotated[
    bool, typer.Option("--json", help="Print one line of JSON when the fleet is ready.")
]


def up(
    model: Annotated[
        str | None,
        typer.Option(help="Model folder or hub id; the bundled tiny model if not given."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes (2).", min=1)] = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="Nodes that may come and go; a planner shapes replicas on them.", min=1),
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(help="Workers per node.", min=1)] = 1,
    policy: PolicyChoice = Policy.TIDESERVE,
    planners: PlannerCount = 1,
    migrators: MigratorCount = 1,
    provision: NodesProvisioned = 0,
    transport: TransportChoice = "auto",
    coserve: CoserveChoice = Coserve.TIDESERVE,
    ttft_slo_ms: TtftSloMs = 1_000,
    tbt_slo_ms: TbtSloMs = 100,
    routers: Annotated[int, typer.Option(help="Router processes.", min=1)] = 1,
    offline_queues: Annotated[int, typer.Option(help="For batches; 0: none.", min=0)] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    profile: ProfileChoice = AUTO,
    http_port: HttpPort = 8000,
    api_keys_file: ApiKeysFile = None,
    nats_url: Annotated[
        str | None, typer.Option("--nats", help="Use this broker instead of an own one.")
    ] = None,
    data_folder: DataFolder = DEFAULT_DATA_FOLDER,
    is_json: ReadyJson = False,
) -> None:
    """Start a whole fleet on this machine; Ctrl-C stops it.

    With --workers each worker holds the whole model. With --nodes a planner spreads it over the
    nodes' workers, and `preempt`, `kill` and `add-node` do what a cloud would. A process that dies
    is replaced under a new id after a short pause; a node that is taken away is not.
    """
    if workers is not None and nodes is not None:
        raise ConfigError("--workers and --nodes: give one of them")
    planned = None
    if nodes is not None:
        planned = PlannedOptions(
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            policy=policy,
            planners=planners,
            migrators=migrators,
            transport=transport,
            provisioned_nodes_max=provision,
        )
    source = find_model(model)
    computing = workers or WORKERS_DEFAULT if nodes is None else nodes * gpus_per_node
    options = FleetOptions(
        model=source,
        profile=_profile(profile, source, device=device, workers=computing),
        data_folder=data_folder,
        workers=computing,
        planned=planned,
        routers=routers,
        offline_queues=offline_queues,
        device=device,
        http_port=http_port,
        api_keys_file=api_keys_file,
        nats_url=nats_url,
        coserve=coserve,
        ttft_slo_ms=ttft_slo_ms,
        tbt_slo_ms=tbt_slo_ms,
    )
    asyncio.run(_run(options, is_json=is_json))


def _profile(given: str, model: ModelSource, *, device: str, workers: int) -> str | None:
    """Return the file of the profile to run with, and say which it is."""
    if given == "none":
        return None
    file = profile_file(
        given,
        model=model.folder,
        device="cpu" if device == "cpu" else "cuda",
        threads=threads_per_worker(workers),
    )
    if file is None:
        say("step times are assumed; `tideserve profile` measures them")
        return None
    measured = read_measured(file)
    say(f"step times as measured at {measured.measured_at} on {measured.hardware.name}")
    return str(file.resolve())


async def _run(options: FleetOptions, *, is_json: bool) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    fleet = Fleet(options, say=say)
    cloud: LocalCloud | None = None
    try:
        starting = asyncio.create_task(fleet.start())
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait([starting, stop], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        starting.result()
        if options.planned is not None:
            cloud = LocalCloud(fleet, say=say)
            await cloud.start()
        _announce(fleet, options, is_json=is_json)
        await stop
    finally:
        say("stopping")
        if cloud is not None:
            await cloud.close()
        await fleet.stop()


def _announce(fleet: Fleet, options: FleetOptions, *, is_json: bool) -> None:
    if is_json:
        processes = {child.name: child.process_id for child in fleet.children}
        urls = {"nats_url": fleet.nats_url, "http_url": fleet.http_url}
        show_json({**urls, "model": fleet.alias, "process_ids": processes})
        return
    text = commands_to_paste(
        nats_url=fleet.nats_url,
        http_url=fleet.http_url,
        alias=fleet.alias,
        has_queue=options.offline_queues > 0,
        has_keys=options.api_keys_file is not None,
    )
    show(text)

"""`tideserve preempt`, `kill` and `add-node`: what the cloud would do."""

import asyncio
import os
import secrets
import signal
from pathlib import Path
from typing import Annotated

import typer

from libs.contracts import subjects
from libs.contracts.local_cloud import (
    CLOUD_ANSWERS,
    AddNode,
    CloudRefused,
    KillNode,
    PreemptNode,
    ToCloud,
)
from libs.contracts.reports import Market
from libs.contracts.wire import encode
from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import NoResponders
from services.launcher.completion import entity_ids, node_ids
from services.launcher.connection import connected
from services.launcher.console import show, show_json
from services.launcher.fleet_view import FleetView, listen_once
from services.launcher.options import AsJson, DataFolder
from services.launcher.state_file import DEFAULT_DATA_FOLDER, FleetState

ANSWER_TIMEOUT_NS = 10 * NS_PER_S
"""Starting the processes of a node takes well under a second."""


def preempt(
    node_id: Annotated[
        str,
        typer.Argument(
            metavar="NODE", help="A node shown by `tideserve status`.", autocompletion=node_ids
        ),
    ],
    grace_s: Annotated[
        float, typer.Option("--grace", help="Seconds of notice.", min=0.0, max=3600.0)
    ] = 30.0,
    data_folder: DataFolder = DEFAULT_DATA_FOLDER,
    is_json: AsJson = False,
) -> None:
    """Give a node its notice, as a cloud does; when the grace is over, it is killed."""
    state = _fleet(data_folder, node_id)
    request = PreemptNode(
        operation_id=_operation_id(), node_id=node_id, grace_ms=round(grace_s * 1000)
    )
    asyncio.run(_ask(state.nats_url, request))
    if is_json:
        show_json({"preempted": node_id, "grace_s": grace_s})
    else:
        show(f"{node_id} has been told that it ends in {grace_s:g} s")


def add_node(
    market: Annotated[Market, typer.Option(help="How it is bought.")] = Market.SPOT,
    zone: Annotated[str | None, typer.Option(help="Its zone.")] = None,
    data_folder: DataFolder = DEFAULT_DATA_FOLDER,
    is_json: AsJson = False,
) -> None:
    """Start one more node; the planner finds work for it."""
    state = _fleet(data_folder)
    request = AddNode(operation_id=_operation_id(), market=market, zone=zone)
    node_id = asyncio.run(_ask(state.nats_url, request))
    if is_json:
        show_json({"added": node_id})
    else:
        show(f"{node_id} starts")


def kill(
    entity_id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="A node or process shown by `tideserve status`.",
            autocompletion=entity_ids,
        ),
    ],
    data_folder: DataFolder = DEFAULT_DATA_FOLDER,
    is_json: AsJson = False,
) -> None:
    """Kill a node, worker, router or gateway of this machine's fleet with SIGKILL."""
    state = _fleet(data_folder)
    if entity_id in state.node_ids:
        request = KillNode(operation_id=_operation_id(), node_id=entity_id)
        asyncio.run(_ask(state.nats_url, request))
        process_ids = [state.process_ids[name] for name in state.processes_of(entity_id)]
    else:
        process_ids = [_kill_process(entity_id, state, data_folder)]
    if is_json:
        show_json({"killed": entity_id, "process_ids": process_ids})
    else:
        named = ", ".join(str(process_id) for process_id in process_ids)
        show(f"killed {entity_id} (process {named})")


def _fleet(data_folder: Path, node_id: str | None = None) -> FleetState:
    state = FleetState.read(data_folder)
    if state is None:
        raise ConfigError(
            f"no fleet runs from {data_folder}, and this command reaches no other: start one with"
            " `tideserve up --nodes 4`, or name its folder with --data-dir"
        )
    if node_id is not None and node_id not in state.node_ids:
        known = ", ".join(state.node_ids) or "none: start the fleet with --nodes"
        raise ConfigError(f"there is no node {node_id}; there is {known}")
    return state


async def _ask(nats_url: str, request: ToCloud) -> str:
    """Return the node that the launcher acted on. Raises: ConfigError with its refusal."""
    async with connected(nats_url, name="tideserve-cloud") as bus:
        try:
            reply = await bus.request(
                subjects.LOCAL_CLOUD, encode(request), timeout_ns=ANSWER_TIMEOUT_NS
            )
        except NoResponders:
            raise ConfigError("this fleet has no nodes: start it with --nodes") from None
        answer = CLOUD_ANSWERS.decode(reply.payload)
    if isinstance(answer, CloudRefused):
        raise ConfigError(answer.message)
    return answer.node_id


def _operation_id() -> str:
    return f"command-{secrets.token_hex(6)}"


def _kill_process(entity_id: str, state: FleetState, data_folder: Path) -> int:
    process_id = state.process_ids.get(entity_id)
    if process_id is None:
        process_id = asyncio.run(_process_of(entity_id, state.nats_url))
    # Only a process that the launcher started is ever signalled, whatever a report claims.
    if process_id not in state.process_ids.values():
        raise ConfigError(f"{entity_id} is no process of the fleet in {data_folder}")
    try:
        os.kill(process_id, signal.SIGKILL)
    except ProcessLookupError:
        raise ConfigError(f"{entity_id} (process {process_id}) is dead already") from None
    return process_id


async def _process_of(entity_id: str, nats_url: str) -> int:
    async with connected(nats_url, name="tideserve-kill") as bus:
        return find_process(await listen_once(bus), entity_id)


def find_process(view: FleetView, entity_id: str) -> int:
    """Return the process that reports under this id. Raises: ConfigError listing those that do."""
    processes = view.process_id_by_entity()
    if entity_id not in processes:
        known = ", ".join(sorted(processes)) or "nobody"
        raise ConfigError(f"nobody reports as {entity_id}; there is {known}")
    return processes[entity_id]

"""`tideserve kill ID`: what the cloud would do, without notice."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from libs.kernel.errors import ConfigError
from services.launcher.connection import connected
from services.launcher.console import show, show_json
from services.launcher.fleet_view import FleetView, listen_once
from services.launcher.state_file import DEFAULT_DATA_FOLDER, FleetState


def kill(
    entity_id: Annotated[str, typer.Argument(help="An id shown by `tideserve status`.")],
    data_folder: Annotated[
        Path, typer.Option("--data-dir", help="The fleet's folder.")
    ] = DEFAULT_DATA_FOLDER,
    is_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Kill a worker, router or gateway of the fleet on this machine with SIGKILL."""
    state = FleetState.read(data_folder)
    if state is None:
        raise ConfigError(f"no fleet runs from {data_folder}; `kill` reaches this machine only")
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
    if is_json:
        show_json({"killed": entity_id, "process_id": process_id})
    else:
        show(f"killed {entity_id} (process {process_id})")


async def _process_of(entity_id: str, nats_url: str) -> int:
    async with connected(nats_url, name="tideserve-kill") as bus:
        return find_process(await listen_once(bus), entity_id)


def find_process(view: FleetView, entity_id: str) -> int:
    """Return the process that reports under this id. Raises: ConfigError listing those that do."""
    processes = {
        **{report.worker_id: report.process_id for report in view.workers()},
        **{report.router_id: report.process_id for report in view.routers()},
        **{report.gateway_id: report.process_id for report in view.gateways()},
    }
    if entity_id not in processes:
        known = ", ".join(sorted(processes)) or "nobody"
        raise ConfigError(f"nobody reports as {entity_id}; there is {known}")
    return processes[entity_id]

"""`python -m services.planner`: one planner process."""

import asyncio
import os
import sys
from pathlib import Path

import structlog

from libs.runtime.bus import Bus
from libs.runtime.clock import Clock, SystemClock
from libs.runtime.process import run_service
from libs.runtime.service import broker, log_as, read_settings, status_port, unique_id
from services.planner.config import PlannerConfig
from services.planner.options import PlannerOptions
from services.planner.planner_metrics import planner_metrics
from services.planner.provisioners.kubernetes import KubernetesProvisioner
from services.planner.provisioners.local import LocalProvisioner
from services.planner.provisioners.port import NoProvisioner, Provisioner
from services.planner.read_profile import read_model, read_profile
from services.planner.settings import planner_options
from services.planner.shell import PlannerShell
from services.planner.store import open_placement_store

_log = structlog.get_logger(__name__)


async def serve(stopping: asyncio.Event) -> None:
    """Read the settings, connect, and plan until told to stop. Raises: ConfigError."""
    config = read_settings(PlannerConfig, service="planner")
    planner_id = unique_id(config.planner_id)
    log_as(config, service="planner", planner_id=planner_id)
    folder = Path(config.model).expanduser()
    options = planner_options(
        config,
        profile=read_profile(folder, device=config.device, profile=config.profile),
        model=read_model(folder),
        planner_id=planner_id,
        process_id=os.getpid(),
    )
    replicas = config.stream_replicas
    async with broker(config.nats_url, name=planner_id, stream_replicas=replicas) as bus:
        await _plan(config, options, bus, stopping)


async def _plan(
    config: PlannerConfig, options: PlannerOptions, bus: Bus, stopping: asyncio.Event
) -> None:
    clock = SystemClock()
    provisioner = _provisioner(config, bus, clock, planner_id=options.planner_id)
    shell = PlannerShell(
        bus=bus,
        store=await open_placement_store(bus, alias=options.alias),
        provisioner=provisioner,
        options=options,
        clock=clock,
    )
    metrics = planner_metrics(
        shell.core,
        plan_ms_recent=lambda: shell.plan_ms_recent,
        messages_unsent=lambda: shell.messages_unsent,
        messages_refused=lambda: shell.actor.events_refused,
    )
    try:
        async with status_port(config, metrics, is_ready=lambda: bus.is_connected):
            _log.info("planner_ready", alias=options.alias, profile=options.profile.source)
            await shell.run(stopping)
    finally:
        await provisioner.close()


def _provisioner(config: PlannerConfig, bus: Bus, clock: Clock, *, planner_id: str) -> Provisioner:
    match config.provisioner:
        case "none":
            return NoProvisioner()
        case "local":
            return LocalProvisioner(bus, clock, planner_id=planner_id)
        case "kubernetes":
            return KubernetesProvisioner(config.kubernetes)


if __name__ == "__main__":
    sys.exit(run_service(serve, name="planner"))

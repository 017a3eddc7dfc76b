"""`python -m services.planner`: one planner process."""

import asyncio
import os
import secrets
import sys
from pathlib import Path

import structlog

from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError, Unavailable
from libs.runtime.bus import Bus
from libs.runtime.clock import Clock, SystemClock
from libs.runtime.config import read_config
from libs.runtime.logs import set_up_logs
from libs.runtime.nats_bus import NatsBus
from libs.runtime.process import run_service
from libs.runtime.status_server import StatusServer
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
    set_up_logs(service="planner")  # for the line that reading the settings writes
    config = read_config(PlannerConfig, service="planner")
    # Unique per start: leadership is bound to the process, not to the name it was given.
    planner_id = alias_of(f"{config.planner_id[:48]}-{secrets.token_hex(4)}")
    set_up_logs(
        service="planner",
        format_name=config.log_format,
        level=config.log_level,
        planner_id=planner_id,
    )
    profile = read_profile(
        Path(config.model).expanduser(), device=config.device, profile=config.profile
    )
    options = planner_options(
        config,
        profile=profile,
        model=read_model(Path(config.model).expanduser()),
        planner_id=planner_id,
        process_id=os.getpid(),
    )
    try:
        bus = await NatsBus.connect(
            config.nats_url, name=planner_id, stream_replicas=config.stream_replicas
        )
    except Unavailable as error:
        raise ConfigError(f"nats_url: {error}") from None
    try:
        await _plan(config, options, bus, stopping)
    finally:
        await bus.close()


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
    status = StatusServer(metrics=metrics, is_ready=lambda: bus.is_connected)
    if config.metrics_port is not None:
        await status.start(host=config.metrics_host, port=config.metrics_port)
    _log.info("planner_ready", alias=options.alias, profile=options.profile.source)
    try:
        await shell.run(stopping)
    finally:
        await status.stop()
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

"""`python -m services.offline_queue`: one offline queue process."""

import asyncio
import os
import secrets
import sys

import structlog

from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.blob_store import open_blob_store
from libs.runtime.bus import Bus
from libs.runtime.clock import SystemClock
from libs.runtime.config import read_config
from libs.runtime.logs import set_up_logs
from libs.runtime.nats_bus import NatsBus
from libs.runtime.process import run_service
from libs.runtime.status_server import StatusServer
from services.offline_queue.config import QueueConfig
from services.offline_queue.offline_metrics import offline_metrics
from services.offline_queue.options import QueueOptions
from services.offline_queue.shell import QueueShell
from services.offline_queue.store import open_offline_store

SERVICE = "offline_queue"

_log = structlog.get_logger(__name__)


async def serve(stopping: asyncio.Event) -> None:
    """Read the settings, connect, and work until told to stop. Raises: ConfigError."""
    set_up_logs(service=SERVICE)  # for the line that reading the settings writes
    config = read_config(QueueConfig, service=SERVICE)
    # Unique per start: a report of a dead process must not pass for ours.
    queue_id = alias_of(f"{config.queue_id[:48]}-{secrets.token_hex(4)}")
    set_up_logs(
        service=SERVICE,
        format_name=config.log_format,
        level=config.log_level,
        queue_id=queue_id,
    )
    try:
        bus = await NatsBus.connect(
            config.nats_url, name=queue_id, stream_replicas=config.stream_replicas
        )
    except Unavailable as error:
        raise ConfigError(f"nats_url: {error}") from None
    try:
        await _work(config, bus, stopping, queue_id=queue_id)
    finally:
        await bus.close()


async def _work(config: QueueConfig, bus: Bus, stopping: asyncio.Event, *, queue_id: str) -> None:
    clock = SystemClock()
    options = queue_options(config, queue_id=queue_id, process_id=os.getpid())
    shell = QueueShell(
        bus=bus,
        store=await open_offline_store(bus, clock=clock, lease_ns=options.lease_ns),
        blobs=open_blob_store(config.blob_store),
        options=options,
        clock=clock,
    )
    status = StatusServer(
        metrics=offline_metrics(
            shell.core,
            tokens_harvested=lambda: shell.tokens_harvested,
            messages_unsent=lambda: shell.messages_unsent,
            messages_refused=lambda: shell.actor.events_refused,
        ),
        is_ready=lambda: bus.is_connected,
    )
    if config.metrics_port is not None:
        await status.start(host=config.metrics_host, port=config.metrics_port)
    _log.info("offline_queue_ready", blob_store=config.blob_store.partition(":")[0])
    try:
        await shell.run(stopping)
    finally:
        await status.stop()


def queue_options(config: QueueConfig, *, queue_id: str, process_id: int) -> QueueOptions:
    """Return what the core is told of the settings."""
    return QueueOptions(
        queue_id=queue_id,
        process_id=process_id,
        report_interval_ns=round(config.report_interval_s * NS_PER_S),
        survey_interval_ns=round(config.survey_interval_s * NS_PER_S),
        lease_ns=round(config.lease_s * NS_PER_S),
        lines_running_max=config.lines_running_max,
        urgent_share=config.urgent_share,
    )


if __name__ == "__main__":
    sys.exit(run_service(serve, name=SERVICE))

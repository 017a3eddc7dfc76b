"""`python -m services.offline_queue`: one offline queue process."""

import asyncio
import os
import sys

import structlog

from libs.kernel.units import NS_PER_S
from libs.runtime.blob_store import open_blob_store
from libs.runtime.bus import Bus
from libs.runtime.clock import SystemClock
from libs.runtime.process import run_service
from libs.runtime.service import broker, log_as, read_settings, status_port, unique_id
from services.offline_queue.config import QueueConfig
from services.offline_queue.offline_metrics import offline_metrics
from services.offline_queue.options import QueueOptions
from services.offline_queue.shell import QueueShell
from services.offline_queue.store import open_offline_store

SERVICE = "offline_queue"

_log = structlog.get_logger(__name__)


async def serve(stopping: asyncio.Event) -> None:
    """Read the settings, connect, and work until told to stop. Raises: ConfigError."""
    config = read_settings(QueueConfig, service=SERVICE)
    queue_id = unique_id(config.queue_id)
    log_as(config, service=SERVICE, queue_id=queue_id)
    replicas = config.stream_replicas
    async with broker(config.nats_url, name=queue_id, stream_replicas=replicas) as bus:
        await _work(config, bus, stopping, queue_id=queue_id)


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
    metrics = offline_metrics(
        shell.core,
        tokens_harvested=lambda: shell.tokens_harvested,
        messages_unsent=lambda: shell.messages_unsent,
        messages_refused=lambda: shell.actor.events_refused,
    )
    async with status_port(config, metrics, is_ready=lambda: bus.is_connected):
        _log.info("offline_queue_ready", blob_store=config.blob_store.partition(":")[0])
        await shell.run(stopping)


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

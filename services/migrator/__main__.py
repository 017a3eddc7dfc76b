"""`python -m services.migrator`: one migrator process."""

import asyncio
import os
import sys

from libs.kernel.units import MIB
from libs.runtime.clock import SystemClock
from libs.runtime.process import run_service
from libs.runtime.service import broker, log_as, read_settings, status_port, unique_id
from services.migrator.config import MigratorConfig
from services.migrator.known_model import known_model
from services.migrator.migrator_metrics import migrator_metrics
from services.migrator.options import MigratorOptions
from services.migrator.shell import open_migrator


async def serve(stopping: asyncio.Event) -> None:
    """Read the settings, connect, and look after the fleet until told to stop.

    Raises: ConfigError.
    """
    config = read_settings(MigratorConfig, service="migrator")
    migrator_id = unique_id(config.migrator_id)
    log_as(config, service="migrator", migrator_id=migrator_id)
    model = known_model(config)
    options = MigratorOptions(
        migrator_id=migrator_id,
        alias=config.alias_served,
        process_id=os.getpid(),
        link_bytes_per_s=config.link_mib_per_s * MIB,
        prefill_tokens_per_s=model.prefill_tokens_per_s,
        load_buffer_bytes_max=config.load_buffer_mib * MIB,
        model_bytes=model.size,
    )
    replicas = config.stream_replicas
    async with broker(config.nats_url, name=migrator_id, stream_replicas=replicas) as bus:
        shell = await open_migrator(bus=bus, options=options, clock=SystemClock())
        metrics = migrator_metrics(shell.core, messages_unsent=lambda: shell.messages_unsent)
        async with status_port(config, metrics, is_ready=lambda: bus.is_connected):
            await shell.run(stopping)


if __name__ == "__main__":
    sys.exit(run_service(serve, name="migrator"))

"""`python -m services.migrator`: one migrator process."""

import asyncio
import os
import secrets
import sys

from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import MIB
from libs.runtime.clock import SystemClock
from libs.runtime.config import read_config
from libs.runtime.logs import set_up_logs
from libs.runtime.nats_bus import NatsBus
from libs.runtime.process import run_service
from libs.runtime.status_server import StatusServer
from services.migrator.config import MigratorConfig
from services.migrator.known_model import known_model
from services.migrator.migrator_metrics import migrator_metrics
from services.migrator.options import MigratorOptions
from services.migrator.shell import MigratorShell, open_migrator


async def serve(stopping: asyncio.Event) -> None:
    """Read the settings, connect, and look after the fleet until told to stop.

    Raises: ConfigError.
    """
    set_up_logs(service="migrator")  # for the line that reading the settings writes
    config = read_config(MigratorConfig, service="migrator")
    # Unique per start: an answer to an earlier process is none to this one.
    migrator_id = alias_of(f"{config.migrator_id[:48]}-{secrets.token_hex(4)}")
    set_up_logs(
        service="migrator",
        format_name=config.log_format,
        level=config.log_level,
        migrator_id=migrator_id,
    )
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
    try:
        bus = await NatsBus.connect(
            config.nats_url, name=migrator_id, stream_replicas=config.stream_replicas
        )
    except Unavailable as error:
        raise ConfigError(f"nats_url: {error}") from None
    shell = await open_migrator(bus=bus, options=options, clock=SystemClock())
    status = await _start_status(config, shell, bus)
    try:
        await shell.run(stopping)
    finally:
        if status is not None:
            await status.stop()
        await bus.close()


async def _start_status(
    config: MigratorConfig, shell: MigratorShell, bus: NatsBus
) -> StatusServer | None:
    if config.metrics_port is None:
        return None
    metrics = migrator_metrics(shell.core, messages_unsent=lambda: shell.messages_unsent)
    status = StatusServer(metrics=metrics, is_ready=lambda: bus.is_connected)
    await status.start(host=config.metrics_host, port=config.metrics_port)
    return status


if __name__ == "__main__":
    sys.exit(run_service(serve, name="migrator"))

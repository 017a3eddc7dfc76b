"""`python -m services.online_router`: one router process."""

import asyncio
import os
import secrets
import sys

from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import NS_PER_MS
from libs.runtime.clock import SystemClock
from libs.runtime.config import read_config
from libs.runtime.logs import set_up_logs
from libs.runtime.nats_bus import NatsBus
from libs.runtime.process import run_service
from libs.runtime.status_server import StatusServer
from libs.runtime.tracing import close_tracing, open_tracing
from services.online_router.config import RouterConfig
from services.online_router.options import Objective, RouterOptions
from services.online_router.router_metrics import router_metrics
from services.online_router.shell import RouterShell, open_router
from services.online_router.tokenization import load_tokenization
from services.online_router.torch_free import keep_torch_out


async def serve(stopping: asyncio.Event) -> None:
    """Read the settings, connect, and route until told to stop. Raises: ConfigError."""
    set_up_logs(service="online_router")  # for the line that reading the settings writes
    config = read_config(RouterConfig, service="online_router")
    # Unique per start: nothing sent to an earlier process may reach this one.
    router_id = alias_of(f"{config.router_id[:48]}-{secrets.token_hex(4)}")
    set_up_logs(
        service="online_router",
        format_name=config.log_format,
        level=config.log_level,
        router_id=router_id,
    )
    keep_torch_out()
    tokenization = load_tokenization(config.models)
    try:
        bus = await NatsBus.connect(
            config.nats_url, name=router_id, stream_replicas=config.stream_replicas
        )
    except Unavailable as error:
        raise ConfigError(f"nats_url: {error}") from None
    options = RouterOptions(
        router_id=router_id,
        aliases=tokenization.aliases,
        process_id=os.getpid(),
        sessions_max=config.sessions_max,
        objective=Objective(
            ttft_ns=config.ttft_slo_ms * NS_PER_MS, tpot_ns=config.tpot_slo_ms * NS_PER_MS
        ),
    )
    tracing = open_tracing(
        service="online-router", instance=router_id, endpoint=config.otlp_endpoint
    )
    shell = await open_router(
        bus=bus,
        tokenization=tokenization,
        options=options,
        clock=SystemClock(),
        tracing=tracing,
    )
    status = await _start_status(config, shell, bus)
    try:
        await shell.run(stopping)
    finally:
        if status is not None:
            await status.stop()
        await bus.close()
        await close_tracing(tracing)


async def _start_status(
    config: RouterConfig, shell: RouterShell, bus: NatsBus
) -> StatusServer | None:
    if config.metrics_port is None:
        return None
    metrics = router_metrics(shell.core.state, messages_unsent=lambda: shell.messages_unsent)
    status = StatusServer(metrics=metrics, is_ready=lambda: bus.is_connected)
    await status.start(host=config.metrics_host, port=config.metrics_port)
    return status


if __name__ == "__main__":
    sys.exit(run_service(serve, name="online_router"))

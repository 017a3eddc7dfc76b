"""`python -m services.online_router`: one router process."""

import asyncio
import os
import sys

from libs.kernel.units import NS_PER_MS
from libs.runtime.clock import SystemClock
from libs.runtime.process import run_service
from libs.runtime.service import broker, log_as, read_settings, status_port, unique_id
from libs.runtime.tracing import open_tracing
from services.online_router.config import RouterConfig
from services.online_router.options import Objective, RouterOptions
from services.online_router.router_metrics import router_metrics
from services.online_router.shell import open_router
from services.online_router.tokenization import load_tokenization
from services.online_router.torch_free import keep_torch_out


async def serve(stopping: asyncio.Event) -> None:
    """Read the settings, connect, and route until told to stop. Raises: ConfigError."""
    config = read_settings(RouterConfig, service="online_router")
    router_id = unique_id(config.router_id)
    log_as(config, service="online_router", router_id=router_id)
    keep_torch_out()
    tokenization = load_tokenization(config.models)
    options = RouterOptions(
        router_id=router_id,
        aliases=tokenization.aliases,
        process_id=os.getpid(),
        sessions_max=config.sessions_max,
        objective=Objective(
            ttft_ns=config.ttft_slo_ms * NS_PER_MS, tpot_ns=config.tpot_slo_ms * NS_PER_MS
        ),
    )
    replicas = config.stream_replicas
    async with (
        open_tracing(
            service="online-router", instance=router_id, endpoint=config.otlp_endpoint
        ) as tracing,
        broker(config.nats_url, name=router_id, stream_replicas=replicas) as bus,
    ):
        shell = await open_router(
            bus=bus,
            tokenization=tokenization,
            options=options,
            clock=SystemClock(),
            tracing=tracing,
        )
        metrics = router_metrics(shell.core.state, messages_unsent=lambda: shell.messages_unsent)
        async with status_port(config, metrics, is_ready=lambda: bus.is_connected):
            await shell.run(stopping)


if __name__ == "__main__":
    sys.exit(run_service(serve, name="online_router"))

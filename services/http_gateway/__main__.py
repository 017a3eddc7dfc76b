"""Starts the gateway: `python -m services.http_gateway`."""

import asyncio
import sys
from dataclasses import replace

from libs.runtime.logs import set_up_logs
from libs.runtime.process import run_service
from libs.runtime.service import broker, read_settings, unique_id
from libs.runtime.tracing import open_tracing
from services.http_gateway.config import GatewayConfig
from services.http_gateway.gateway import running_gateway

SERVICE = "http_gateway"


async def serve(stopping: asyncio.Event) -> None:
    """Read the settings, connect, and serve until told to stop. Raises: ConfigError."""
    config = read_settings(GatewayConfig, service=SERVICE)
    gateway_id = unique_id(config.gateway_id)
    config = replace(config, gateway_id=gateway_id)
    set_up_logs(service=SERVICE, gateway_id=gateway_id)
    async with (
        open_tracing(
            service="http-gateway", instance=gateway_id, endpoint=config.otlp_endpoint
        ) as tracing,
        broker(config.nats_url, name=gateway_id) as bus,
        running_gateway(bus, config, tracing=tracing) as gateway,
    ):
        await gateway.until(stopping)


if __name__ == "__main__":
    sys.exit(run_service(serve, name=SERVICE))

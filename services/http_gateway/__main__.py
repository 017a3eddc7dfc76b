"""Starts the gateway: `python -m services.http_gateway`."""

import asyncio
import secrets
import sys
from dataclasses import replace

from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError, Unavailable
from libs.runtime.config import read_config
from libs.runtime.logs import set_up_logs
from libs.runtime.nats_bus import NatsBus
from libs.runtime.process import die_with_parent, run_service
from libs.runtime.tracing import close_tracing, open_tracing
from services.http_gateway.config import GatewayConfig
from services.http_gateway.gateway import running_gateway

SERVICE = "http_gateway"


async def serve(stopping: asyncio.Event) -> None:
    """Read the settings, connect, and serve until told to stop. Raises: ConfigError."""
    set_up_logs(service=SERVICE)
    config = read_config(GatewayConfig, service=SERVICE)
    # Unique per start: a gateway that hears another's reports as its own misjudges silence.
    gateway_id = alias_of(f"{config.gateway_id[:48]}-{secrets.token_hex(4)}")
    config = replace(config, gateway_id=gateway_id)
    set_up_logs(service=SERVICE, gateway_id=gateway_id)
    if config.dies_with_parent:
        die_with_parent()
    try:
        bus = await NatsBus.connect(config.nats_url, name=gateway_id)
    except Unavailable as error:
        raise ConfigError(f"nats_url: {error}") from None
    tracing = open_tracing(
        service="http-gateway", instance=config.gateway_id, endpoint=config.otlp_endpoint
    )
    try:
        async with running_gateway(bus, config, tracing=tracing) as gateway:
            await gateway.until(stopping)
    finally:
        await bus.close()
        await close_tracing(tracing)


if __name__ == "__main__":
    sys.exit(run_service(serve, name=SERVICE))

"""Starts the gateway: `python -m services.http_gateway`."""

import asyncio
import sys

from libs.kernel.errors import EXIT_CONFIG_ERROR, ConfigError
from libs.runtime.config import read_config
from libs.runtime.logs import set_up_logs
from libs.runtime.nats_bus import NatsBus
from libs.runtime.process import run_service
from services.http_gateway.config import GatewayConfig
from services.http_gateway.gateway import running_gateway

SERVICE = "http_gateway"


async def serve(config: GatewayConfig, stopping: asyncio.Event) -> None:
    """Serve until told to stop."""
    bus = await NatsBus.connect(config.nats_url, name=config.gateway_id)
    try:
        async with running_gateway(bus, config):
            await stopping.wait()
    finally:
        await bus.close()


def main() -> int:
    """Return the exit code."""
    set_up_logs(service=SERVICE)
    try:
        config = read_config(GatewayConfig, service=SERVICE)
    except ConfigError as error:
        print(f"{SERVICE}: {error}", file=sys.stderr)
        return EXIT_CONFIG_ERROR
    return run_service(
        lambda stopping: serve(config, stopping),
        name=SERVICE,
        dies_with_parent=config.dies_with_parent,
    )


if __name__ == "__main__":
    sys.exit(main())

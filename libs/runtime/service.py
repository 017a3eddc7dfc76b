"""What the process of every service does alike: settings, an id, logs, the broker, a status port.

A service's config inherits ServiceConfig, or StoringConfig if it creates streams or buckets.
"""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError, Unavailable
from libs.runtime.bus import STREAM_REPLICAS
from libs.runtime.config import read_config
from libs.runtime.logs import FormatName, set_up_logs
from libs.runtime.metrics import Metrics
from libs.runtime.nats_bus import NatsBus
from libs.runtime.status_server import StatusServer

PREFIX_LENGTH_MAX: Final = 48
"""Of an id's prefix: with what makes the id unique, it still is a subject token."""

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What an operator sets of every service that reports itself on a status port."""

    nats_url: str = "nats://127.0.0.1:4222"
    """Broker to connect to; several, comma-separated, are one cluster."""
    log_format: FormatName = "json"
    """json for machines, console for people."""
    log_level: str = "info"
    """debug, info, warning or error."""
    metrics_port: int | None = None
    """Port of /metrics, /live and /health; none serves them not at all."""
    metrics_host: str = "127.0.0.1"
    """Address that the metrics port listens on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoringConfig(ServiceConfig):
    """What an operator sets of a service that keeps something with the brokers."""

    stream_replicas: int = 1
    """Copies that the brokers of a cluster keep of each stream: 3 there, the same for all services;
    1 for a broker alone."""

    def __post_init__(self) -> None:
        if self.stream_replicas not in STREAM_REPLICAS:
            raise ConfigError("stream_replicas: must be 1, 3 or 5")


def read_settings(shape: type[ConfigT], *, service: str) -> ConfigT:
    """Read the settings from the environment and log them. Raises: ConfigError."""
    set_up_logs(service=service)  # for the line that reading the settings writes
    return read_config(shape, service=service)


def log_as(config: ServiceConfig, *, service: str, **identity: str) -> None:
    """Log as the operator wishes from now on, every line with who wrote it. Raises: ConfigError."""
    set_up_logs(service=service, format_name=config.log_format, level=config.log_level)
    structlog.contextvars.bind_contextvars(**identity)


def unique_id(prefix: str) -> str:
    """Return an id that no other start of a service has, as a subject token.

    So nothing that was sent to, stored by or reported of an earlier process passes for this one's.
    """
    return alias_of(f"{prefix[:PREFIX_LENGTH_MAX]}-{secrets.token_hex(4)}")


@asynccontextmanager
async def broker(url: str, *, name: str, stream_replicas: int = 1) -> AsyncIterator[NatsBus]:
    """Connect, and disconnect at the end. Raises: ConfigError if nobody answers at the URL."""
    try:
        bus = await NatsBus.connect(url, name=name, stream_replicas=stream_replicas)
    except Unavailable as error:
        raise ConfigError(f"nats_url: {error}") from None
    try:
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def status_port(
    config: ServiceConfig, metrics: Metrics, *, is_ready: Callable[[], bool]
) -> AsyncIterator[None]:
    """Serve metrics and health meanwhile, if the operator set a port. Raises: ConfigError."""
    status = StatusServer(metrics=metrics, is_ready=is_ready)
    if config.metrics_port is not None:
        await status.start(host=config.metrics_host, port=config.metrics_port)
    try:
        yield
    finally:
        await status.stop()

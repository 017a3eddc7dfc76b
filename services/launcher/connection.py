"""A connection for one command: short-lived, and impatient where a service would wait."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from libs.kernel.units import NS_PER_S
from libs.runtime.nats_bus import NatsBus

CONNECT_TIMEOUT_NS: Final = 5 * NS_PER_S
"""A person waits for the command; a service waits longer for its broker."""


@asynccontextmanager
async def connected(url: str, *, name: str) -> AsyncIterator[NatsBus]:
    """Connect, and disconnect at the end. Raises: Unavailable; ConfigError for a wrong URL."""
    bus = await NatsBus.connect(url, name=name, timeout_ns=CONNECT_TIMEOUT_NS)
    try:
        yield bus
    finally:
        await bus.close()

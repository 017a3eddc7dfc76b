"""The watcher's way to the bus, which may not be there yet and may go away.

A watcher that starts during a broker's gap must serve its node's workers all the same. So the link
connects by itself for as long as it takes; what is published meanwhile is dropped and counted, and
the core's repeats make up for it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.bus import CoreBus, Subscription

RETRY_NS: Final = NS_PER_S

_log = structlog.get_logger(__name__)


class BusLink:
    """One connection, made when the broker lets itself be reached."""

    def __init__(self, connect: Callable[[], Awaitable[CoreBus]]) -> None:
        self._connect = connect
        self._bus: CoreBus | None = None
        self._is_failing = False
        self.messages_dropped = 0

    @property
    def is_connected(self) -> bool:
        """Whether a message published now would be sent now."""
        return self._bus is not None and self._bus.is_connected

    async def subscribe(self, subject: str) -> Subscription:
        """Connect, however long it takes, and subscribe. Raises: ConfigError."""
        while True:
            try:
                if self._bus is None:
                    self._bus = await self._connect()
                return await self._bus.subscribe(subject)
            except Unavailable as error:
                _log.warning("bus_unavailable", reason=str(error))
                await asyncio.sleep(seconds(RETRY_NS))

    async def publish(self, subject: str, payload: bytes) -> None:
        """Publish, or drop and count; one line in the log per outage."""
        try:
            if self._bus is None:
                raise Unavailable("not connected yet", retry_after_ns=RETRY_NS)
            await self._bus.publish(subject, payload)
        except (Unavailable, ContractViolation) as error:
            self.messages_dropped += 1
            if not self._is_failing:
                self._is_failing = True
                _log.warning("publish_failed", subject=subject, error=str(error))
            return
        if self._is_failing:
            self._is_failing = False
            _log.info("publish_recovered", messages_dropped=self.messages_dropped)

    async def close(self) -> None:
        """Send what was published and disconnect."""
        if self._bus is not None:
            await self._bus.close()

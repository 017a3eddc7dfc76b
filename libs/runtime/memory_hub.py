"""What buses over one in-memory broker share: broker, clock and the way to subscribers."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS, seconds
from libs.runtime.clock import Clock, SystemClock
from libs.runtime.memory_broker import PAYLOAD_BYTES_MAX, Delivery, MemoryBroker

RETRY_AFTER_NS: Final = 250 * NS_PER_MS


class MemoryHub:
    """One in-memory broker, its clock and the sinks of its subscribers.

    `is_reachable` set to False makes every bus of the hub behave as if the server were away; the
    broker keeps what it has stored, and leases keep running out.
    """

    def __init__(
        self, *, clock: Clock | None = None, payload_bytes_max: int = PAYLOAD_BYTES_MAX
    ) -> None:
        self.clock: Clock = SystemClock() if clock is None else clock
        self.broker = MemoryBroker(payload_bytes_max=payload_bytes_max)
        self.disconnects = 0
        self._is_reachable = True
        self._sinks: dict[int, Callable[[Delivery], None]] = {}
        self._inboxes = itertools.count(1)
        self._changed = asyncio.Event()

    @property
    def is_reachable(self) -> bool:
        """Whether the buses find their broker."""
        return self._is_reachable

    @is_reachable.setter
    def is_reachable(self, is_reachable: bool) -> None:
        if self._is_reachable and not is_reachable:
            self.disconnects += 1
        self._is_reachable = is_reachable
        self.carry()

    def reach(self) -> MemoryBroker:
        """Return the broker, or raise Unavailable while it is away."""
        if not self._is_reachable:
            raise Unavailable("the broker is away", retry_after_ns=RETRY_AFTER_NS)
        return self.broker

    def carry(self) -> None:
        """Take the outbox to the subscribers and wake whoever waits for a change."""
        for delivery in self.broker.take_deliveries():
            sink = self._sinks.get(delivery.subscription_id)
            if sink is not None:
                sink(delivery)
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, *, timeout_ns: int) -> None:
        """Return when something has changed or the time has passed, whichever is first."""
        try:
            async with asyncio.timeout(seconds(timeout_ns)):
                await self._changed.wait()
        except TimeoutError:
            return

    def add_sink(
        self, pattern: str, sink: Callable[[Delivery], None], *, queue_group: str | None = None
    ) -> int:
        """Subscribe a function; return the subscription's id."""
        subscription_id = self.reach().subscribe(pattern, queue_group=queue_group)
        self._sinks[subscription_id] = sink
        return subscription_id

    def remove_sink(self, subscription_id: int) -> None:
        """Unsubscribe; harmless when done already, or while the broker is away."""
        self.broker.unsubscribe(subscription_id)
        self._sinks.pop(subscription_id, None)

    def new_inbox(self) -> str:
        """Return a subject that no other client of the hub uses."""
        return f"_INBOX.memory.{next(self._inboxes)}"

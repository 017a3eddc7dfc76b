"""Publishes what the core sends, in order, without ever making the core wait.

Every message to a router or about the worker may be lost: tokens are sent again, answers asked for
again, reports replaced. So the outbox drops instead of waiting: when the broker is away, and when
more than `messages_max` wait, the newest. Both are counted.
"""

import asyncio
from collections import deque
from typing import Final

import structlog

from libs.contracts.wire import Outgoing
from libs.kernel.errors import ContractViolation, Unavailable
from libs.runtime.bus import CoreBus

MESSAGES_MAX: Final = 4096

_log = structlog.get_logger(__name__)


class Outbox:
    """A bounded queue with one publisher."""

    def __init__(self, bus: CoreBus, *, messages_max: int = MESSAGES_MAX) -> None:
        self._bus = bus
        self._messages_max = messages_max
        self._messages: deque[Outgoing] = deque()
        self._filled = asyncio.Event()
        self._is_closed = False
        self._is_failing = False
        self.messages_dropped = 0

    def put(self, message: Outgoing) -> None:
        """Queue the message, or drop it if the queue is full."""
        if len(self._messages) >= self._messages_max:
            self.messages_dropped += 1
            return
        self._messages.append(message)
        self._filled.set()

    def close(self) -> None:
        """Let `run` return once everything queued has been published or dropped."""
        self._is_closed = True
        self._filled.set()

    async def run(self) -> None:
        """Publish until closed."""
        while True:
            while self._messages:
                await self._publish(self._messages.popleft())
            if self._is_closed:
                return
            self._filled.clear()
            await self._filled.wait()

    async def _publish(self, message: Outgoing) -> None:
        try:
            await self._bus.publish(message.subject, message.payload)
        except (Unavailable, ContractViolation) as error:
            self.messages_dropped += 1
            if not self._is_failing:  # one line per outage, not one per message
                self._is_failing = True
                _log.warning("publish_failed", subject=message.subject, error=str(error))
            return
        if self._is_failing:
            self._is_failing = False
            _log.info("publish_recovered", messages_dropped=self.messages_dropped)

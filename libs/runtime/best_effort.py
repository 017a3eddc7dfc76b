"""Speaking to a broker that may be away, where the protocol says everything again."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from libs.kernel.errors import Unavailable
from libs.runtime.bus import NO_HEADERS, CoreBus, Subscription


class BestEffortPublisher:
    """Publishes messages whose loss costs time only; those that the broker cannot take it counts.

    A message that can never be sent, such as one above the broker's bound, still raises.
    """

    def __init__(self, bus: CoreBus) -> None:
        self.messages_unsent = 0
        self._bus = bus

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        reply_to: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """Publish, or count. Raises: ContractViolation."""
        try:
            await self._bus.publish(subject, payload, reply_to=reply_to, headers=headers)
        except Unavailable:
            self.messages_unsent += 1


async def close_all(subscriptions: Iterable[Subscription]) -> None:
    """Close them; a broker that is away has forgotten them anyway."""
    for subscription in subscriptions:
        with suppress(Unavailable):
            await subscription.close()

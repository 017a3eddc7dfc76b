"""Speaking and listening to a broker that may be away, where the protocol says everything again."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from libs.kernel.errors import Unavailable
from libs.runtime.bus import NO_HEADERS, BusMessage, CoreBus, Subscription
from libs.runtime.shell import ActorShell, CommandT, EventT


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


async def run_until(
    stopping: asyncio.Event,
    actor: ActorShell[EventT, CommandT],
    *,
    heard: Sequence[Subscription],
    translate: Callable[[BusMessage], EventT | None],
) -> None:
    """Run the actor on what the subscriptions bring; when told to stop, close them and end."""
    async with asyncio.TaskGroup() as tasks:
        for subscription in heard:
            tasks.create_task(actor.feed(subscription, translate))
        tasks.create_task(actor.run())
        await stopping.wait()
        await close_all(heard)
        actor.stop()


async def close_all(subscriptions: Iterable[Subscription]) -> None:
    """Close them; a broker that is away has forgotten them anyway."""
    for subscription in subscriptions:
        with suppress(Unavailable):
            await subscription.close()

"""Publishing what may be lost, and leaving a broker that may be away."""

import asyncio

import pytest

from libs.runtime.best_effort import BestEffortPublisher, close_all
from libs.runtime.bus import PayloadTooLarge
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub


def test_what_a_broker_that_is_away_cannot_take_is_counted_and_what_it_can_take_arrives():
    async def scenario() -> None:
        hub = MemoryHub()
        bus = MemoryBus(hub)
        publisher = BestEffortPublisher(bus)
        subscription = await bus.subscribe("a")
        hub.is_reachable = False
        await publisher.publish("a", b"1")
        hub.is_reachable = True
        await publisher.publish("a", b"2", reply_to="b", headers={"name": "value"})
        message = await anext(subscription)
        assert (message.payload, message.reply_to) == (b"2", "b")
        assert message.headers == {"name": "value"}
        assert publisher.messages_unsent == 1

    asyncio.run(scenario())


def test_what_no_broker_can_take_is_an_error():
    async def scenario() -> None:
        bus = MemoryBus(MemoryHub())
        publisher = BestEffortPublisher(bus)
        with pytest.raises(PayloadTooLarge):
            await publisher.publish("a", bytes(bus.payload_bytes_max + 1))
        assert publisher.messages_unsent == 0

    asyncio.run(scenario())


def test_all_subscriptions_end_though_the_broker_is_away():
    async def scenario() -> None:
        hub = MemoryHub()
        bus = MemoryBus(hub)
        subscriptions = [await bus.subscribe(subject) for subject in ("a", "b")]
        hub.is_reachable = False
        await close_all(subscriptions)
        assert [[message async for message in one] for one in subscriptions] == [[], []]

    asyncio.run(scenario())

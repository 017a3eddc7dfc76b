"""What the in-memory bus adds for tests of services: a broker that goes away."""

import asyncio

import pytest

from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import ConsumerOptions, StreamOptions
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub


def test_while_the_broker_is_away_everything_is_unavailable_and_nothing_is_lost():
    async def scenario() -> None:
        hub = MemoryHub()
        bus = MemoryBus(hub)
        await bus.ensure_stream(
            StreamOptions(
                name="s", subjects=("s.>",), messages_max=9, bytes_max=9999, age_max_ns=None
            )
        )
        consumer = await bus.lease_consumer(
            ConsumerOptions(
                stream="s",
                durable="w",
                filter_subject="s.>",
                ack_wait_ns=NS_PER_S,
                deliveries_max=1,
                leases_max=9,
            )
        )
        subscription = await bus.subscribe("s.a")
        await bus.append("s.a", b"1")
        hub.is_reachable = False
        assert not bus.is_connected
        assert bus.disconnects == 1
        for refused in (
            bus.publish("s.a", b""),
            bus.append("s.a", b""),
            bus.request("s.a", b""),
            bus.read_subject("s", "s.a"),
            consumer.fetch(1, timeout_ns=NS_PER_S),
        ):
            with pytest.raises(Unavailable):
                await refused
        hub.is_reachable = True
        await bus.append("s.a", b"2")
        assert [(await anext(subscription)).payload for _ in range(2)] == [b"1", b"2"]
        assert len(await bus.read_subject("s", "s.a")) == 2

    asyncio.run(scenario())


def test_a_fetch_that_waits_ends_when_the_broker_goes_away():
    async def scenario() -> None:
        hub = MemoryHub()
        bus = MemoryBus(hub)
        await bus.ensure_stream(
            StreamOptions(
                name="s", subjects=("s.>",), messages_max=9, bytes_max=9999, age_max_ns=None
            )
        )
        consumer = await bus.lease_consumer(
            ConsumerOptions(
                stream="s",
                durable="w",
                filter_subject="s.>",
                ack_wait_ns=1,
                deliveries_max=1,
                leases_max=9,
            )
        )
        fetch = asyncio.create_task(consumer.fetch(1, timeout_ns=60 * NS_PER_S))
        await asyncio.sleep(0)
        hub.is_reachable = False
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await fetch

    asyncio.run(scenario())


def test_a_closed_bus_ends_its_subscriptions_and_takes_nothing_more():
    async def scenario() -> None:
        hub = MemoryHub()
        bus, other = MemoryBus(hub), MemoryBus(hub)
        subscription = await bus.subscribe("a")
        await other.publish("a", b"1")
        await bus.close()
        assert [message.payload async for message in subscription] == [b"1"]
        with pytest.raises(Unavailable):
            await bus.publish("a", b"")
        await other.publish("a", b"2")

    asyncio.run(scenario())

"""The outbox: in order, never waiting, and counting what it drops."""

import asyncio

from libs.contracts.wire import Outgoing
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from services.gpu_worker.outbox import Outbox


def a_message(number: int, *, payload_bytes: int = 2) -> Outgoing:
    return Outgoing(subject="tide.v1.test", payload=number.to_bytes(payload_bytes, "big"))


async def published(hub: MemoryHub, outbox: Outbox, messages: list[Outgoing]) -> list[bytes]:
    subscription = await MemoryBus(hub).subscribe("tide.v1.test")
    for message in messages:
        outbox.put(message)
    outbox.close()
    await outbox.run()
    await subscription.close()
    return [message.payload async for message in subscription]


async def test_messages_go_out_in_order_and_all_of_them_before_the_end() -> None:
    hub = MemoryHub()
    messages = [a_message(number) for number in range(100)]
    received = await published(hub, Outbox(MemoryBus(hub)), messages)
    assert received == [message.payload for message in messages]


async def test_what_exceeds_the_bound_is_dropped_and_counted() -> None:
    hub = MemoryHub()
    outbox = Outbox(MemoryBus(hub), messages_max=3)
    messages = [a_message(number) for number in range(5)]
    assert await published(hub, outbox, messages) == [m.payload for m in messages[:3]]
    assert outbox.messages_dropped == 2


async def test_a_message_that_cannot_be_sent_does_not_hold_up_the_next() -> None:
    hub = MemoryHub(payload_bytes_max=16)
    outbox = Outbox(MemoryBus(hub))
    received = await published(hub, outbox, [a_message(1, payload_bytes=64), a_message(2)])
    assert received == [a_message(2).payload]
    assert outbox.messages_dropped == 1


async def test_a_broker_that_is_away_costs_the_messages_of_that_time_only() -> None:
    hub = MemoryHub()
    outbox = Outbox(MemoryBus(hub))
    subscription = await MemoryBus(hub).subscribe("tide.v1.test")
    publishing = asyncio.create_task(outbox.run())
    hub.is_reachable = False
    outbox.put(a_message(1))
    async with asyncio.timeout(10):
        while outbox.messages_dropped == 0:
            await asyncio.sleep(0)
    hub.is_reachable = True
    outbox.put(a_message(2))
    assert (await anext(subscription)).payload == a_message(2).payload
    outbox.close()
    await publishing

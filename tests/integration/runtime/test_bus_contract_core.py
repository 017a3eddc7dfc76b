"""What every Bus does with messages that nobody stores, in memory and over NATS alike."""

import asyncio
import time

import pytest

from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.bus import (
    NoResponders,
    PayloadTooLarge,
    Subscription,
)

SHORT_NS = 100 * NS_PER_MS
LONG_NS = 5 * NS_PER_S


async def is_silent(subscription: Subscription) -> bool:
    """Whether nothing comes for a while."""
    try:
        async with asyncio.timeout(0.1):
            await anext(aiter(subscription))
    except TimeoutError:
        return True
    return False


async def test_a_subscriber_gets_what_its_pattern_covers_in_order(world, received):
    async with world.bus() as bus, world.bus() as other:
        everything = await bus.subscribe("news.>")
        one_token = await bus.subscribe("news.*")
        for number in range(3):
            await other.publish(f"news.{number}", b"%d" % number)
        await other.publish("news.far.away", b"far")
        await other.publish("olds.1", b"old")
        assert await received(everything, 4) == [b"0", b"1", b"2", b"far"]
        assert await received(one_token, 3) == [b"0", b"1", b"2"]
        assert await is_silent(everything)
        assert await is_silent(one_token)


async def test_headers_and_reply_subject_arrive(world):
    async with world.bus() as bus:
        inbox = bus.new_inbox()
        subscription = await bus.subscribe(world.name("letters"))
        subject = world.name("letters")
        subscription = await bus.subscribe(subject)
        await bus.publish(subject, b"x", reply_to=inbox, headers={"Cause-Id": "mig-1"})
        message = await anext(subscription)
        assert message.reply_to == inbox
        assert dict(message.headers) == {"Cause-Id": "mig-1"}
        assert message.subject == subject


async def test_of_a_queue_group_exactly_one_member_gets_each_message(world, received):
    async with world.bus() as bus, world.bus() as other:
        subject = world.name("jobs")
        members = [
            await bus.subscribe(subject, queue_group="g"),
            await other.subscribe(subject, queue_group="g"),
        ]
        witness = await bus.subscribe(subject)
        for number in range(50):
            await bus.publish(subject, b"%d" % number)
        assert len(await received(witness, 50)) == 50
        await other.flush()
        for member in members:
            await member.close()
        got = [message.payload for member in members async for message in member]
        assert sorted(got) == sorted(b"%d" % number for number in range(50))


async def test_a_request_is_answered(world):
    async with world.bus() as bus, world.bus() as other:
        subject = world.name("echo")
        service = await other.subscribe(subject)

        async def serve():
            async for message in service:
                await other.publish(message.reply_to, message.payload.upper())

        task = asyncio.create_task(serve())
        replies = await asyncio.gather(
            *(bus.request(subject, b"a%d" % number) for number in range(20))
        )
        assert [reply.payload for reply in replies] == [b"A%d" % number for number in range(20)]
        task.cancel()


async def test_a_request_nobody_listens_to_fails_at_once(world):
    async with world.bus() as bus:
        started_at = time.monotonic()
        with pytest.raises(NoResponders):
            await bus.request(world.name("nobody"), b"", timeout_ns=LONG_NS)
        assert time.monotonic() - started_at < 4


async def test_a_request_that_is_heard_but_not_answered_times_out(world):
    async with world.bus() as bus:
        subject = world.name("silent")
        await bus.subscribe(subject)
        with pytest.raises(Unavailable) as caught:
            await bus.request(subject, b"", timeout_ns=SHORT_NS)
        assert not isinstance(caught.value, NoResponders)


async def test_a_slow_subscriber_loses_the_newest_and_counts_them(world, received):
    async with world.bus() as bus, world.bus() as other:
        subject = world.name("flood")
        slow = await bus.subscribe(subject, pending_messages_max=10)
        last = await bus.subscribe(subject)
        for number in range(100):
            await other.publish(subject, b"%d" % number)
        await received(last, 100)
        assert slow.messages_dropped == 90
        assert await received(slow, 10) == [b"%d" % number for number in range(10)]
        await other.publish(subject, b"again")
        assert await received(slow, 1) == [b"again"]


async def test_a_closed_subscription_ends_after_what_it_has(world, received):
    async with world.bus() as bus:
        subject = world.name("ends")
        subscription = await bus.subscribe(subject)
        witness = await bus.subscribe(subject)
        await bus.publish(subject, b"1")
        await received(witness, 1)
        await subscription.close()
        await subscription.close()
        await bus.publish(subject, b"2")
        assert [message.payload async for message in subscription] == [b"1"]


async def test_a_payload_over_the_maximum_is_refused_before_publishing(world, received):
    async with world.bus() as bus:
        subject = world.name("big")
        subscription = await bus.subscribe(subject)
        largest = bus.payload_bytes_max
        with pytest.raises(PayloadTooLarge):
            await bus.publish(subject, b"x" * (largest + 1))
        with pytest.raises(PayloadTooLarge):
            await bus.publish(subject, b"x" * largest, headers={"a": "b"})
        with pytest.raises(PayloadTooLarge):
            await bus.append(subject, b"x" * (largest + 1))
        await bus.publish(subject, b"x" * largest)
        assert len((await received(subscription, 1))[0]) == largest
        assert bus.is_connected


@pytest.mark.parametrize("subject", ["", "a..b", "a b", "a.*", "a.>", "a\r\nPUB b 0"])
async def test_a_subject_that_cannot_be_published_to_is_refused(world, subject):
    async with world.bus() as bus:
        with pytest.raises(ContractViolation):
            await bus.publish(subject, b"")
        await bus.flush()
        assert bus.is_connected

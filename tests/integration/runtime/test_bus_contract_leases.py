"""What every Bus does with leases, in memory and over NATS alike."""

import asyncio
import json
import time

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.bus import (
    Bus,
    ConsumerOptions,
    LeaseConsumer,
)

SHORT_NS = 100 * NS_PER_MS
ACK_WAIT_NS = 300 * NS_PER_MS
LONG_NS = 5 * NS_PER_S


@pytest.fixture
def a_work_queue(a_stream):
    """Builds a work queue and its consumer, whose leases do not run out by default."""

    async def build(
        bus: Bus,
        name: str,
        *,
        ack_wait_ns: int = 60 * NS_PER_S,
        deliveries_max: int = 5,
        leases_max: int = 100,
    ) -> LeaseConsumer:
        await a_stream(bus, name, retention="work_queue")
        return await bus.lease_consumer(
            ConsumerOptions(
                stream=name,
                durable="workers",
                filter_subject=f"{name}.>",
                ack_wait_ns=ack_wait_ns,
                deliveries_max=deliveries_max,
                leases_max=leases_max,
            )
        )

    return build


async def test_leases_go_out_in_order_and_an_ack_empties_the_queue(world, a_work_queue):
    async with world.bus() as bus:
        name = world.name("queue")
        consumer = await a_work_queue(bus, name)
        for number in range(5):
            await bus.append(f"{name}.j", b"%d" % number)
        leases = await consumer.fetch(3, timeout_ns=LONG_NS)
        assert [lease.message.payload for lease in leases] == [b"0", b"1", b"2"]
        assert [lease.delivery_count for lease in leases] == [1, 1, 1]
        assert (await bus.stream_state(name)).messages == 5
        for lease in leases:
            await lease.ack()
        assert (await bus.stream_state(name)).messages == 2
        rest = await consumer.fetch(10, timeout_ns=LONG_NS)
        assert [lease.message.payload for lease in rest] == [b"3", b"4"]


async def test_a_fetch_waits_for_the_first_message(world, a_work_queue):
    async with world.bus() as bus, world.bus() as other:
        name = world.name("waits")
        consumer = await a_work_queue(bus, name)
        fetching = asyncio.create_task(consumer.fetch(5, timeout_ns=LONG_NS))
        await asyncio.sleep(0.05)
        await other.append(f"{name}.j", b"1")
        leases = await fetching
        assert [lease.message.payload for lease in leases] == [b"1"]


async def test_a_fetch_of_an_empty_queue_ends_in_time(world, a_work_queue):
    async with world.bus() as bus:
        consumer = await a_work_queue(bus, world.name("empty"))
        started_at = time.monotonic()
        assert await consumer.fetch(5, timeout_ns=SHORT_NS) == []
        assert await consumer.fetch(5, timeout_ns=0) == []
        assert await consumer.fetch(1, timeout_ns=0) == []
        assert 0.09 < time.monotonic() - started_at < 4


async def test_members_of_a_consumer_share_its_messages(world, a_work_queue):
    async with world.bus() as bus, world.bus() as other:
        name = world.name("share")
        one = await a_work_queue(bus, name)
        two = await a_work_queue(other, name)
        for number in range(10):
            await bus.append(f"{name}.j", b"%d" % number)
        leases = await one.fetch(5, timeout_ns=LONG_NS) + await two.fetch(5, timeout_ns=LONG_NS)
        assert sorted(int(lease.message.payload) for lease in leases) == list(range(10))


async def test_an_unacknowledged_lease_runs_out_and_is_delivered_again(world, a_work_queue):
    async with world.bus() as bus:
        name = world.name("again")
        consumer = await a_work_queue(bus, name, ack_wait_ns=ACK_WAIT_NS)
        await bus.append(f"{name}.j", b"1")
        started_at = time.monotonic()
        [first] = await consumer.fetch(1, timeout_ns=LONG_NS)
        [second] = await consumer.fetch(1, timeout_ns=LONG_NS)
        assert time.monotonic() - started_at >= 0.25
        assert (first.delivery_count, second.delivery_count) == (1, 2)
        assert second.message.sequence == first.message.sequence
        await second.ack()
        assert await consumer.fetch(1, timeout_ns=2 * ACK_WAIT_NS) == []


async def test_in_progress_keeps_a_lease(world, a_work_queue):
    async with world.bus() as bus:
        name = world.name("progress")
        consumer = await a_work_queue(bus, name, ack_wait_ns=NS_PER_S)
        await bus.append(f"{name}.j", b"1")
        [lease] = await consumer.fetch(1, timeout_ns=LONG_NS)
        for _ in range(5):
            assert await consumer.fetch(1, timeout_ns=3 * SHORT_NS) == []
            await lease.in_progress()
        await lease.ack()
        assert (await bus.stream_state(name)).messages == 0


async def test_a_nak_brings_the_message_back_after_its_delay(world, a_work_queue):
    async with world.bus() as bus:
        name = world.name("nak")
        consumer = await a_work_queue(bus, name)
        await bus.append(f"{name}.j", b"1")
        [lease] = await consumer.fetch(1, timeout_ns=LONG_NS)
        await lease.nak()
        [lease] = await consumer.fetch(1, timeout_ns=LONG_NS)
        assert lease.delivery_count == 2
        started_at = time.monotonic()
        await lease.nak(delay_ns=NS_PER_S)
        assert await consumer.fetch(1, timeout_ns=3 * SHORT_NS) == []
        [lease] = await consumer.fetch(1, timeout_ns=LONG_NS)
        assert 0.95 < time.monotonic() - started_at < 4
        assert lease.delivery_count == 3


async def test_a_terminated_message_leaves_the_work_queue(world, a_work_queue):
    async with world.bus() as bus:
        name = world.name("term")
        consumer = await a_work_queue(bus, name)
        await bus.append(f"{name}.j", b"1")
        [lease] = await consumer.fetch(1, timeout_ns=LONG_NS)
        await lease.term()
        assert await consumer.fetch(1, timeout_ns=2 * ACK_WAIT_NS) == []
        assert (await bus.stream_state(name)).messages == 0


async def test_after_its_last_delivery_a_message_stays_but_comes_no_more_and_this_is_said(
    world, received, a_work_queue
):
    async with world.bus() as bus:
        name = world.name("dead")
        consumer = await a_work_queue(bus, name, deliveries_max=2)
        advisories = await bus.subscribe(
            f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{name}.workers"
        )
        await bus.append(f"{name}.j", b"dead")
        for _ in range(2):
            [lease] = await consumer.fetch(1, timeout_ns=LONG_NS)
            await lease.nak()
        assert await consumer.fetch(1, timeout_ns=2 * ACK_WAIT_NS) == []
        [advisory] = await received(advisories, 1)
        assert json.loads(advisory)["stream_seq"] == 1
        assert [m.payload for m in await bus.read_subject(name, f"{name}.>")] == [b"dead"]
        await bus.delete_message(name, 1)
        assert (await bus.stream_state(name)).messages == 0


async def test_no_more_leases_are_out_than_allowed(world, a_work_queue):
    async with world.bus() as bus:
        name = world.name("bound")
        consumer = await a_work_queue(bus, name, leases_max=2)
        for number in range(4):
            await bus.append(f"{name}.j", b"%d" % number)
        leases = await consumer.fetch(4, timeout_ns=LONG_NS)
        assert [lease.message.payload for lease in leases] == [b"0", b"1"]
        assert await consumer.fetch(4, timeout_ns=SHORT_NS) == []
        await leases[0].ack()
        [third] = await consumer.fetch(4, timeout_ns=LONG_NS)
        assert third.message.payload == b"2"


async def test_a_work_queue_can_be_read_without_taking_anything(world, a_work_queue):
    async with world.bus() as bus:
        name = world.name("browse")
        consumer = await a_work_queue(bus, name)
        for number in range(4):
            await bus.append(f"{name}.{number % 2}", b"%d" % number)
        seen = await bus.read_subject(name, f"{name}.1")
        assert [(m.sequence, m.payload) for m in seen] == [(2, b"1"), (4, b"3")]
        assert len(await consumer.fetch(10, timeout_ns=LONG_NS)) == 4


async def test_a_filter_that_overlaps_another_consumers_is_refused(world, a_work_queue):
    async with world.bus() as bus:
        name = world.name("unique")
        await a_work_queue(bus, name)
        with pytest.raises(ConfigError, match="other"):
            await bus.lease_consumer(
                ConsumerOptions(
                    stream=name,
                    durable="other",
                    filter_subject=f"{name}.j",
                    ack_wait_ns=ACK_WAIT_NS,
                    deliveries_max=5,
                    leases_max=5,
                )
            )


async def test_a_deleted_consumer_leaves_its_messages_to_the_next_one(world, a_work_queue):
    async with world.bus() as bus:
        name = world.name("queue")
        consumer = await a_work_queue(bus, name)
        await bus.append(f"{name}.j", b"work")
        assert len(await consumer.fetch(1, timeout_ns=LONG_NS)) == 1
        assert await bus.delete_consumer(name, "workers")
        assert not await bus.delete_consumer(name, "workers")
        consumer = await a_work_queue(bus, name)
        (lease,) = await consumer.fetch(1, timeout_ns=LONG_NS)
        assert (lease.message.payload, lease.delivery_count) == (b"work", 1)

"""What every Bus does, in memory and over NATS alike."""

import asyncio
import json
import time

import pytest

from libs.kernel.errors import ConfigError, ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.bus import (
    Bus,
    InitialStateComplete,
    KeyDeleted,
    KeyEvent,
    KeyExists,
    KeyUpdated,
    KeyWatch,
    LeaseConsumer,
    NoResponders,
    PayloadTooLarge,
    StreamFull,
    StreamMissing,
    StreamOptions,
    Subscription,
    WrongLastSequence,
    WrongRevision,
)

SHORT_NS = 100 * NS_PER_MS
ACK_WAIT_NS = 300 * NS_PER_MS
LONG_NS = 5 * NS_PER_S


async def received(subscription: Subscription, count: int) -> list[bytes]:
    """The payloads of the next messages, which must come."""
    async with asyncio.timeout(5):
        return [(await anext(aiter(subscription))).payload for _ in range(count)]


async def is_silent(subscription: Subscription) -> bool:
    """Whether nothing comes for a while."""
    try:
        async with asyncio.timeout(0.1):
            await anext(aiter(subscription))
    except TimeoutError:
        return True
    return False


async def a_stream(bus: Bus, name: str, **changes: object) -> StreamOptions:
    options: dict[str, object] = {
        "name": name,
        "subjects": (f"{name}.>",),
        "messages_max": 1000,
        "bytes_max": 1_000_000,
        "age_max_ns": None,
        "storage": "memory",
    }
    stream = StreamOptions(**(options | changes))  # type: ignore[arg-type]
    await bus.ensure_stream(stream)
    return stream


async def a_work_queue(
    bus: Bus, name: str, *, deliveries_max: int = 5, leases_max: int = 100
) -> LeaseConsumer:
    await a_stream(bus, name, retention="work_queue")
    return await bus.lease_consumer(
        name,
        "workers",
        filter_subject=f"{name}.>",
        ack_wait_ns=ACK_WAIT_NS,
        deliveries_max=deliveries_max,
        leases_max=leases_max,
    )


async def events(watch: KeyWatch, count: int) -> list[KeyEvent]:
    async with asyncio.timeout(5):
        return [await anext(aiter(watch)) for _ in range(count)]


# Core messages.


async def test_a_subscriber_gets_what_its_pattern_covers_in_order(world):
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


async def test_of_a_queue_group_exactly_one_member_gets_each_message(world):
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
        assert time.monotonic() - started_at < 1


async def test_a_request_that_is_heard_but_not_answered_times_out(world):
    async with world.bus() as bus:
        subject = world.name("silent")
        await bus.subscribe(subject)
        with pytest.raises(Unavailable) as caught:
            await bus.request(subject, b"", timeout_ns=SHORT_NS)
        assert not isinstance(caught.value, NoResponders)


async def test_a_slow_subscriber_loses_the_newest_and_counts_them(world):
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


async def test_a_closed_subscription_ends_after_what_it_has(world):
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


async def test_a_payload_over_the_maximum_is_refused_before_publishing(world):
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


# Streams.


async def test_appends_are_numbered_and_can_be_read_back(world):
    async with world.bus() as bus:
        name = world.name("journal")
        await a_stream(bus, name)
        first = await bus.append(f"{name}.a", b"1", headers={"Cause-Id": "c"})
        await bus.append(f"{name}.b", b"2")
        await bus.append(f"{name}.a", b"3")
        assert (first.stream, first.sequence, first.is_duplicate) == (name, 1, False)
        messages = await bus.read_subject(name, f"{name}.a")
        assert [(m.sequence, m.subject, m.payload) for m in messages] == [
            (1, f"{name}.a", b"1"),
            (3, f"{name}.a", b"3"),
        ]
        assert messages[0].headers["Cause-Id"] == "c"
        everything = await bus.read_subject(name, f"{name}.>", from_sequence=2)
        assert [m.payload for m in everything] == [b"2", b"3"]
        assert await bus.read_subject(name, f"{name}.none") == []
        assert await bus.read_subject(name, f"{name}.>", from_sequence=4) == []


async def test_a_long_subject_is_read_completely(world):
    async with world.bus() as bus:
        name = world.name("long")
        await a_stream(bus, name, messages_max=10_000)
        for start in range(0, 2000, 100):
            await asyncio.gather(
                *(bus.append(f"{name}.a", b"%d" % n) for n in range(start, start + 100))
            )
        messages = await bus.read_subject(name, f"{name}.a")
        assert [m.sequence for m in messages] == list(range(1, 2001))
        assert {int(m.payload) for m in messages} == set(range(2000))


async def test_a_repeated_message_id_is_stored_once(world):
    async with world.bus() as bus:
        name = world.name("dedupe")
        await a_stream(bus, name)
        first = await bus.append(f"{name}.a", b"1", message_id="m1")
        again = await bus.append(f"{name}.a", b"1", message_id="m1")
        other = await bus.append(f"{name}.a", b"1", message_id="m2")
        assert again.sequence == first.sequence
        assert again.is_duplicate
        assert not other.is_duplicate
        assert (await bus.stream_state(name)).messages == 2


async def test_a_message_id_is_forgotten_after_the_window(world):
    async with world.bus() as bus:
        name = world.name("window")
        await a_stream(bus, name, duplicate_window_ns=SHORT_NS)
        await bus.append(f"{name}.a", b"1", message_id="m1")
        deadline = time.monotonic() + 5
        while (await bus.append(f"{name}.a", b"1", message_id="m1")).is_duplicate:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert (await bus.stream_state(name)).messages == 2


async def test_an_append_is_fenced_by_the_subjects_last_sequence(world):
    async with world.bus() as bus:
        name = world.name("fence")
        await a_stream(bus, name)
        a, b = f"{name}.a", f"{name}.b"
        await bus.append(a, b"1", expected_last_subject_sequence=0)
        await bus.append(b, b"2", expected_last_subject_sequence=0)
        await bus.append(a, b"3", expected_last_subject_sequence=1)
        with pytest.raises(WrongLastSequence) as caught:
            await bus.append(a, b"4", expected_last_subject_sequence=1)
        assert caught.value.actual_sequence == 3
        assert [m.payload for m in await bus.read_subject(name, a)] == [b"1", b"3"]


async def test_a_repeated_fenced_append_is_a_duplicate_not_a_conflict(world):
    async with world.bus() as bus:
        name = world.name("retry")
        await a_stream(bus, name)
        subject = f"{name}.a"
        first = await bus.append(subject, b"1", message_id="m", expected_last_subject_sequence=0)
        again = await bus.append(subject, b"1", message_id="m", expected_last_subject_sequence=0)
        assert again.is_duplicate
        assert again.sequence == first.sequence


async def test_of_many_fenced_appends_exactly_one_wins(world):
    async with world.bus() as bus, world.bus() as other:
        name = world.name("race")
        await a_stream(bus, name)
        results = await asyncio.gather(
            *(
                each.append(f"{name}.a", b"%d" % n, expected_last_subject_sequence=0)
                for n in range(10)
                for each in (bus, other)
            ),
            return_exceptions=True,
        )
        assert sum(not isinstance(result, Exception) for result in results) == 1
        assert sum(isinstance(result, WrongLastSequence) for result in results) == 19


async def test_a_full_stream_that_discards_the_new_refuses(world):
    async with world.bus() as bus:
        name = world.name("full")
        await a_stream(bus, name, messages_max=3)
        for number in range(3):
            await bus.append(f"{name}.a", b"%d" % number)
        with pytest.raises(StreamFull):
            await bus.append(f"{name}.a", b"3")
        assert len(await bus.read_subject(name, f"{name}.a")) == 3
        await bus.delete_message(name, 1)
        await bus.append(f"{name}.a", b"3")


async def test_a_stream_full_of_bytes_refuses(world):
    async with world.bus() as bus:
        name = world.name("bytes")
        await a_stream(bus, name, bytes_max=10_000)
        await bus.append(f"{name}.a", b"x" * 9_000)
        with pytest.raises(StreamFull):
            await bus.append(f"{name}.a", b"x" * 9_000)
        assert (await bus.stream_state(name)).messages == 1


async def test_a_full_stream_that_discards_the_old_keeps_the_newest(world):
    async with world.bus() as bus:
        name = world.name("ring")
        await a_stream(bus, name, messages_max=3, discard="old")
        for number in range(5):
            await bus.append(f"{name}.a", b"%d" % number)
        messages = await bus.read_subject(name, f"{name}.a")
        assert [m.payload for m in messages] == [b"2", b"3", b"4"]
        state = await bus.stream_state(name)
        assert (state.messages, state.first_sequence, state.last_sequence) == (3, 3, 5)


async def test_a_subject_keeps_no_more_than_its_own_bound(world):
    async with world.bus() as bus:
        name = world.name("per")
        await a_stream(bus, name, messages_per_subject_max=2)
        for number in range(4):
            await bus.append(f"{name}.a", b"%d" % number)
        await bus.append(f"{name}.b", b"b")
        assert await bus.subjects(name) == {f"{name}.a": 2, f"{name}.b": 1}
        assert [m.payload for m in await bus.read_subject(name, f"{name}.a")] == [b"2", b"3"]


async def test_a_message_too_large_for_its_stream_is_refused(world):
    async with world.bus() as bus:
        name = world.name("small")
        await a_stream(bus, name, message_bytes_max=100)
        await bus.append(f"{name}.a", b"x" * 100)
        with pytest.raises(PayloadTooLarge):
            await bus.append(f"{name}.a", b"x" * 101)


async def test_messages_die_of_age(world):
    async with world.bus() as bus:
        name = world.name("age")
        await a_stream(bus, name, age_max_ns=200 * NS_PER_MS, duplicate_window_ns=200 * NS_PER_MS)
        await bus.append(f"{name}.a", b"1")
        assert len(await bus.read_subject(name, f"{name}.a")) == 1
        deadline = time.monotonic() + 5
        while await bus.last_message(name, f"{name}.a") is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_the_last_message_of_a_subject_or_pattern_is_found(world):
    async with world.bus() as bus:
        name = world.name("last")
        await a_stream(bus, name)
        assert await bus.last_message(name, f"{name}.a") is None
        await bus.append(f"{name}.a", b"1", headers={"Sender": "r1"})
        await bus.append(f"{name}.b", b"2")
        last = await bus.last_message(name, f"{name}.a")
        assert (last.sequence, last.payload, last.subject) == (1, b"1", f"{name}.a")
        assert last.headers["Sender"] == "r1"
        assert (await bus.last_message(name, f"{name}.>")).payload == b"2"


async def test_subjects_are_counted(world):
    async with world.bus() as bus:
        name = world.name("counts")
        await a_stream(bus, name)
        for subject in ("a.1", "b.1", "a.1", "a.2"):
            await bus.append(f"{name}.{subject}", b"")
        assert await bus.subjects(name) == {
            f"{name}.a.1": 2,
            f"{name}.a.2": 1,
            f"{name}.b.1": 1,
        }
        assert await bus.subjects(name, f"{name}.a.*") == {f"{name}.a.1": 2, f"{name}.a.2": 1}
        assert await bus.subjects(name, f"{name}.c") == {}


async def test_a_purge_spares_what_it_is_told_to(world):
    async with world.bus() as bus:
        name = world.name("purge")
        await a_stream(bus, name)
        for number in range(6):
            await bus.append(f"{name}.{'ab'[number % 2]}", b"%d" % number)
        assert await bus.purge(name, f"{name}.a", before_sequence=3) == 1
        assert await bus.purge(name, f"{name}.b", keep=1) == 2
        left = await bus.read_subject(name, f"{name}.>")
        assert [m.sequence for m in left] == [3, 5, 6]
        with pytest.raises(ContractViolation):
            await bus.purge(name, f"{name}.a", before_sequence=3, keep=1)
        assert await bus.purge(name, f"{name}.a", before_sequence=1) == 0
        assert await bus.purge(name, f"{name}.>") == 3
        assert (await bus.append(f"{name}.a", b"")).sequence == 7


async def test_a_message_is_deleted_once(world):
    async with world.bus() as bus:
        name = world.name("delete")
        await a_stream(bus, name)
        for number in range(3):
            await bus.append(f"{name}.a", b"%d" % number)
        assert await bus.delete_message(name, 2)
        assert not await bus.delete_message(name, 2)
        assert [m.sequence for m in await bus.read_subject(name, f"{name}.a")] == [1, 3]


async def test_an_append_that_no_stream_captures_has_no_responders(world):
    async with world.bus() as bus:
        with pytest.raises(NoResponders):
            await bus.append(world.name("nowhere"), b"")


async def test_a_missing_stream_is_named_as_such(world):
    async with world.bus() as bus:
        name = world.name("missing")
        with pytest.raises(StreamMissing):
            await bus.last_message(name, f"{name}.a")
        with pytest.raises(StreamMissing):
            await bus.read_subject(name, f"{name}.a")
        with pytest.raises(StreamMissing):
            await bus.lease_consumer(
                name, "d", filter_subject="a", ack_wait_ns=1, deliveries_max=1, leases_max=1
            )


async def test_a_stream_is_ensured_twice_and_its_bounds_can_change(world):
    async with world.bus() as bus, world.bus() as other:
        name = world.name("ensure")
        await a_stream(bus, name, messages_max=2)
        await a_stream(other, name, messages_max=2)
        await bus.append(f"{name}.a", b"")
        await bus.append(f"{name}.a", b"")
        await a_stream(other, name, messages_max=3)
        await bus.append(f"{name}.a", b"")
        with pytest.raises(StreamFull):
            await bus.append(f"{name}.a", b"")


async def test_a_retention_cannot_be_changed_and_the_error_names_the_stream(world):
    async with world.bus() as bus:
        name = world.name("retain")
        await a_stream(bus, name)
        with pytest.raises(ConfigError, match=name):
            await a_stream(bus, name, retention="work_queue")


async def test_streams_may_not_overlap(world):
    async with world.bus() as bus:
        name = world.name("overlap")
        await a_stream(bus, name)
        with pytest.raises(ConfigError, match="overlap"):
            await a_stream(bus, name + "x", subjects=(f"{name}.a.*",))


async def test_a_plain_subscriber_sees_appends_and_a_plain_request_is_stored(world):
    async with world.bus() as bus:
        name = world.name("seen")
        await a_stream(bus, name)
        subscription = await bus.subscribe(f"{name}.>")
        await bus.append(f"{name}.a", b"1")
        receipt = json.loads((await bus.request(f"{name}.a", b"2")).payload)
        assert receipt["seq"] == 2
        assert await received(subscription, 2) == [b"1", b"2"]


# Leases.


async def test_leases_go_out_in_order_and_an_ack_empties_the_queue(world):
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


async def test_a_fetch_waits_for_the_first_message(world):
    async with world.bus() as bus, world.bus() as other:
        name = world.name("waits")
        consumer = await a_work_queue(bus, name)
        fetching = asyncio.create_task(consumer.fetch(5, timeout_ns=LONG_NS))
        await asyncio.sleep(0.05)
        await other.append(f"{name}.j", b"1")
        leases = await fetching
        assert [lease.message.payload for lease in leases] == [b"1"]


async def test_a_fetch_of_an_empty_queue_ends_in_time(world):
    async with world.bus() as bus:
        consumer = await a_work_queue(bus, world.name("empty"))
        started_at = time.monotonic()
        assert await consumer.fetch(5, timeout_ns=SHORT_NS) == []
        assert await consumer.fetch(5, timeout_ns=0) == []
        assert await consumer.fetch(1, timeout_ns=0) == []
        assert 0.09 < time.monotonic() - started_at < 2


async def test_members_of_a_consumer_share_its_messages(world):
    async with world.bus() as bus, world.bus() as other:
        name = world.name("share")
        one = await a_work_queue(bus, name)
        two = await a_work_queue(other, name)
        for number in range(10):
            await bus.append(f"{name}.j", b"%d" % number)
        leases = await one.fetch(5, timeout_ns=LONG_NS) + await two.fetch(5, timeout_ns=LONG_NS)
        assert sorted(int(lease.message.payload) for lease in leases) == list(range(10))


async def test_an_unacknowledged_lease_runs_out_and_is_delivered_again(world):
    async with world.bus() as bus:
        name = world.name("again")
        consumer = await a_work_queue(bus, name)
        await bus.append(f"{name}.j", b"1")
        started_at = time.monotonic()
        [first] = await consumer.fetch(1, timeout_ns=LONG_NS)
        [second] = await consumer.fetch(1, timeout_ns=LONG_NS)
        assert time.monotonic() - started_at >= 0.25
        assert (first.delivery_count, second.delivery_count) == (1, 2)
        assert second.message.sequence == first.message.sequence
        await second.ack()
        assert await consumer.fetch(1, timeout_ns=2 * ACK_WAIT_NS) == []


async def test_in_progress_keeps_a_lease(world):
    async with world.bus() as bus:
        name = world.name("progress")
        consumer = await a_work_queue(bus, name)
        await bus.append(f"{name}.j", b"1")
        [lease] = await consumer.fetch(1, timeout_ns=LONG_NS)
        for _ in range(6):
            assert await consumer.fetch(1, timeout_ns=SHORT_NS) == []
            await lease.in_progress()
        await lease.ack()
        assert (await bus.stream_state(name)).messages == 0


async def test_a_nak_brings_the_message_back_after_its_delay(world):
    async with world.bus() as bus:
        name = world.name("nak")
        consumer = await a_work_queue(bus, name)
        await bus.append(f"{name}.j", b"1")
        [lease] = await consumer.fetch(1, timeout_ns=LONG_NS)
        await lease.nak()
        [lease] = await consumer.fetch(1, timeout_ns=SHORT_NS)
        assert lease.delivery_count == 2
        started_at = time.monotonic()
        await lease.nak(delay_ns=600 * NS_PER_MS)
        assert await consumer.fetch(1, timeout_ns=400 * NS_PER_MS) == []
        [lease] = await consumer.fetch(1, timeout_ns=LONG_NS)
        assert 0.55 < time.monotonic() - started_at < 2
        assert lease.delivery_count == 3


async def test_a_terminated_message_leaves_the_work_queue(world):
    async with world.bus() as bus:
        name = world.name("term")
        consumer = await a_work_queue(bus, name)
        await bus.append(f"{name}.j", b"1")
        [lease] = await consumer.fetch(1, timeout_ns=LONG_NS)
        await lease.term()
        assert await consumer.fetch(1, timeout_ns=2 * ACK_WAIT_NS) == []
        assert (await bus.stream_state(name)).messages == 0


async def test_after_its_last_delivery_a_message_stays_but_comes_no_more_and_this_is_said(world):
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


async def test_no_more_leases_are_out_than_allowed(world):
    async with world.bus() as bus:
        name = world.name("bound")
        consumer = await a_work_queue(bus, name, leases_max=2)
        for number in range(4):
            await bus.append(f"{name}.j", b"%d" % number)
        leases = await consumer.fetch(4, timeout_ns=LONG_NS)
        assert [lease.message.payload for lease in leases] == [b"0", b"1"]
        assert await consumer.fetch(4, timeout_ns=SHORT_NS) == []
        await leases[0].ack()
        [third] = await consumer.fetch(4, timeout_ns=SHORT_NS)
        assert third.message.payload == b"2"


async def test_a_work_queue_can_be_read_without_taking_anything(world):
    async with world.bus() as bus:
        name = world.name("browse")
        consumer = await a_work_queue(bus, name)
        for number in range(4):
            await bus.append(f"{name}.{number % 2}", b"%d" % number)
        seen = await bus.read_subject(name, f"{name}.1")
        assert [(m.sequence, m.payload) for m in seen] == [(2, b"1"), (4, b"3")]
        assert len(await consumer.fetch(10, timeout_ns=LONG_NS)) == 4


async def test_a_filter_that_overlaps_another_consumers_is_refused(world):
    async with world.bus() as bus:
        name = world.name("unique")
        await a_work_queue(bus, name)
        with pytest.raises(ConfigError, match="other"):
            await bus.lease_consumer(
                name,
                "other",
                filter_subject=f"{name}.j",
                ack_wait_ns=ACK_WAIT_NS,
                deliveries_max=5,
                leases_max=5,
            )


# Keys.


async def test_keys_are_created_updated_and_deleted_by_compare_and_set(world):
    async with world.bus() as bus:
        keys = await bus.ensure_bucket(world.name("bucket"), bytes_max=100_000, storage="memory")
        assert await keys.get("leader") is None
        first = await keys.create("leader", b"a")
        with pytest.raises(KeyExists):
            await keys.create("leader", b"b")
        second = await keys.update("leader", b"b", revision=first)
        assert second > first
        with pytest.raises(WrongRevision):
            await keys.update("leader", b"c", revision=first)
        entry = await keys.get("leader")
        assert (entry.value, entry.revision) == (b"b", second)
        with pytest.raises(WrongRevision):
            await keys.delete("leader", revision=first)
        await keys.delete("leader", revision=second)
        assert await keys.get("leader") is None
        third = await keys.create("leader", b"d")
        assert third > second
        assert await keys.put("leader", b"e") > third
        assert (await keys.get("leader")).value == b"e"


async def test_of_many_creators_of_a_key_exactly_one_wins(world):
    async with world.bus() as bus, world.bus() as other:
        name = world.name("election")
        buckets = [
            await each.ensure_bucket(name, bytes_max=100_000, storage="memory")
            for each in (bus, other)
        ]
        results = await asyncio.gather(
            *(keys.create("leader", b"%d" % n) for n in range(5) for keys in buckets),
            return_exceptions=True,
        )
        assert sum(isinstance(result, int) for result in results) == 1
        assert sum(isinstance(result, KeyExists) for result in results) == 9


async def test_the_existing_keys_are_listed(world):
    async with world.bus() as bus:
        keys = await bus.ensure_bucket(world.name("list"), bytes_max=100_000, storage="memory")
        assert await keys.keys() == []
        for key in ("b", "a.x", "c"):
            await keys.put(key, b"value")
        await keys.delete("c")
        assert await keys.keys() == ["a.x", "b"]


async def test_a_watch_tells_the_state_then_says_so_then_the_changes(world):
    async with world.bus() as bus, world.bus() as other:
        name = world.name("watch")
        keys = await bus.ensure_bucket(name, bytes_max=100_000, storage="memory")
        await keys.put("a.1", b"old")
        one = await keys.put("a.1", b"1")
        await keys.put("b.1", b"other")
        watch = await keys.watch("a.*")
        assert await events(watch, 2) == [
            KeyUpdated(key="a.1", value=b"1", revision=one),
            InitialStateComplete(),
        ]
        theirs = await other.ensure_bucket(name, bytes_max=100_000, storage="memory")
        two = await theirs.put("a.2", b"2")
        await theirs.put("b.2", b"other")
        await theirs.delete("a.1")
        updated, deleted = await events(watch, 2)
        assert updated == KeyUpdated(key="a.2", value=b"2", revision=two)
        assert isinstance(deleted, KeyDeleted)
        assert deleted.key == "a.1"
        await watch.close()
        assert [event async for event in watch] == []


async def test_a_watch_of_an_empty_bucket_says_at_once_that_it_is_complete(world):
    async with world.bus() as bus:
        keys = await bus.ensure_bucket(world.name("none"), bytes_max=100_000, storage="memory")
        watch = await keys.watch()
        assert await events(watch, 1) == [InitialStateComplete()]
        await watch.close()


async def test_a_watch_sees_every_one_of_many_changes(world):
    async with world.bus() as bus:
        keys = await bus.ensure_bucket(world.name("many"), bytes_max=1_000_000, storage="memory")
        for number in range(300):
            await keys.put(f"before.{number}", b"")
        watch = await keys.watch()
        seen = await events(watch, 301)
        assert isinstance(seen[-1], InitialStateComplete)
        for number in range(300):
            await keys.put(f"after.{number}", b"")
        keys_seen = [event.key for event in await events(watch, 300)]
        assert keys_seen == [f"after.{number}" for number in range(300)]
        await watch.close()


@pytest.mark.parametrize("key", ["", "a..b", ".a", "a.", "a b", "a*", ">", "ä"])
async def test_what_cannot_be_a_key_is_refused(world, key):
    async with world.bus() as bus:
        keys = await bus.ensure_bucket(world.name("odd"), bytes_max=100_000, storage="memory")
        with pytest.raises(ContractViolation):
            await keys.put(key, b"")


async def test_keys_die_of_age(world):
    async with world.bus() as bus:
        keys = await bus.ensure_bucket(
            world.name("lease"), bytes_max=100_000, age_max_ns=200 * NS_PER_MS, storage="memory"
        )
        await keys.create("leader", b"a")
        deadline = time.monotonic() + 5
        while await keys.get("leader") is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await keys.create("leader", b"b")

"""What every Bus does with streams, in memory and over NATS alike."""

import asyncio
import json
import time

import pytest

from libs.kernel.errors import ConfigError, ContractViolation
from libs.kernel.units import NS_PER_MS
from libs.runtime.bus import (
    ConsumerOptions,
    NoResponders,
    PayloadTooLarge,
    StreamFull,
    StreamMissing,
    WrongLastSequence,
)

SHORT_NS = 100 * NS_PER_MS


async def test_appends_are_numbered_and_can_be_read_back(world, a_stream):
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


async def test_a_long_subject_is_read_completely(world, a_stream):
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


async def test_a_repeated_message_id_is_stored_once(world, a_stream):
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


async def test_a_message_id_is_forgotten_after_the_window(world, a_stream):
    async with world.bus() as bus:
        name = world.name("window")
        await a_stream(bus, name, duplicate_window_ns=SHORT_NS)
        await bus.append(f"{name}.a", b"1", message_id="m1")
        deadline = time.monotonic() + 5
        while (await bus.append(f"{name}.a", b"1", message_id="m1")).is_duplicate:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert (await bus.stream_state(name)).messages == 2


async def test_an_append_is_fenced_by_the_subjects_last_sequence(world, a_stream):
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


async def test_a_repeated_fenced_append_is_a_duplicate_not_a_conflict(world, a_stream):
    async with world.bus() as bus:
        name = world.name("retry")
        await a_stream(bus, name)
        subject = f"{name}.a"
        first = await bus.append(subject, b"1", message_id="m", expected_last_subject_sequence=0)
        again = await bus.append(subject, b"1", message_id="m", expected_last_subject_sequence=0)
        assert again.is_duplicate
        assert again.sequence == first.sequence


async def test_of_many_fenced_appends_exactly_one_wins(world, a_stream):
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


async def test_a_full_stream_that_discards_the_new_refuses(world, a_stream):
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


async def test_a_stream_full_of_bytes_refuses(world, a_stream):
    async with world.bus() as bus:
        name = world.name("bytes")
        await a_stream(bus, name, bytes_max=10_000)
        await bus.append(f"{name}.a", b"x" * 9_000)
        with pytest.raises(StreamFull):
            await bus.append(f"{name}.a", b"x" * 9_000)
        assert (await bus.stream_state(name)).messages == 1


async def test_a_full_stream_that_discards_the_old_keeps_the_newest(world, a_stream):
    async with world.bus() as bus:
        name = world.name("ring")
        await a_stream(bus, name, messages_max=3, discard="old")
        for number in range(5):
            await bus.append(f"{name}.a", b"%d" % number)
        messages = await bus.read_subject(name, f"{name}.a")
        assert [m.payload for m in messages] == [b"2", b"3", b"4"]
        state = await bus.stream_state(name)
        assert (state.messages, state.first_sequence, state.last_sequence) == (3, 3, 5)


async def test_a_subject_keeps_no_more_than_its_own_bound(world, a_stream):
    async with world.bus() as bus:
        name = world.name("per")
        await a_stream(bus, name, messages_per_subject_max=2)
        for number in range(4):
            await bus.append(f"{name}.a", b"%d" % number)
        await bus.append(f"{name}.b", b"b")
        assert await bus.subjects(name) == {f"{name}.a": 2, f"{name}.b": 1}
        assert [m.payload for m in await bus.read_subject(name, f"{name}.a")] == [b"2", b"3"]


async def test_a_message_too_large_for_its_stream_is_refused(world, a_stream):
    async with world.bus() as bus:
        name = world.name("small")
        await a_stream(bus, name, message_bytes_max=100)
        await bus.append(f"{name}.a", b"x" * 100)
        with pytest.raises(PayloadTooLarge):
            await bus.append(f"{name}.a", b"x" * 101)


async def test_messages_die_of_age(world, a_stream):
    async with world.bus() as bus:
        name = world.name("age")
        await a_stream(bus, name, age_max_ns=200 * NS_PER_MS, duplicate_window_ns=200 * NS_PER_MS)
        await bus.append(f"{name}.a", b"1")
        assert len(await bus.read_subject(name, f"{name}.a")) == 1
        deadline = time.monotonic() + 5
        while await bus.last_message(name, f"{name}.a") is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_the_last_message_of_a_subject_or_pattern_is_found(world, a_stream):
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


async def test_subjects_are_counted(world, a_stream):
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


async def test_a_purge_spares_what_it_is_told_to(world, a_stream):
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


async def test_a_message_is_deleted_once(world, a_stream):
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
                ConsumerOptions(
                    stream=name,
                    durable="d",
                    filter_subject="a",
                    ack_wait_ns=1,
                    deliveries_max=1,
                    leases_max=1,
                )
            )


async def test_a_stream_is_ensured_twice_and_its_bounds_can_change(world, a_stream):
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


async def test_a_retention_cannot_be_changed_and_the_error_names_the_stream(world, a_stream):
    async with world.bus() as bus:
        name = world.name("retain")
        await a_stream(bus, name)
        with pytest.raises(ConfigError, match=name):
            await a_stream(bus, name, retention="work_queue")


async def test_streams_may_not_overlap(world, a_stream):
    async with world.bus() as bus:
        name = world.name("overlap")
        await a_stream(bus, name)
        with pytest.raises(ConfigError, match="overlap"):
            await a_stream(bus, name + "x", subjects=(f"{name}.a.*",))


async def test_a_plain_subscriber_sees_appends_and_a_plain_request_is_stored(
    world, received, a_stream
):
    async with world.bus() as bus:
        name = world.name("seen")
        await a_stream(bus, name)
        subscription = await bus.subscribe(f"{name}.>")
        await bus.append(f"{name}.a", b"1")
        receipt = json.loads((await bus.request(f"{name}.a", b"2")).payload)
        assert receipt["seq"] == 2
        assert await received(subscription, 2) == [b"1", b"2"]

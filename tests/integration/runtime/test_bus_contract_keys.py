"""What every Bus does with keys, in memory and over NATS alike."""

import asyncio
import time

import pytest

from libs.kernel.errors import ContractViolation
from libs.kernel.units import NS_PER_MS
from libs.runtime.bus import (
    InitialStateComplete,
    KeyDeleted,
    KeyEvent,
    KeyExists,
    KeyUpdated,
    KeyWatch,
    WrongRevision,
)


async def events(watch: KeyWatch, count: int) -> list[KeyEvent]:
    async with asyncio.timeout(5):
        return [await anext(aiter(watch)) for _ in range(count)]


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

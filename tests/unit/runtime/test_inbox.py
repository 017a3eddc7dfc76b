"""The queue between a reader that must not wait and a consumer."""

import asyncio

import pytest

from libs.runtime.inbox import Inbox


def test_at_the_bound_the_newest_is_dropped_and_counted():
    inbox: Inbox[int] = Inbox(items_max=2)
    assert [inbox.offer(number) for number in range(4)] == [True, True, False, False]
    assert inbox.items_dropped == 2
    inbox.close()

    async def read() -> list[int]:
        return [item async for item in inbox]

    assert asyncio.run(read()) == [0, 1]


def test_a_waiting_reader_gets_the_next_item_and_a_failure_ends_it():
    async def scenario() -> None:
        inbox: Inbox[int] = Inbox(items_max=2)
        reader = asyncio.create_task(anext(inbox))
        await asyncio.sleep(0)
        inbox.offer(7)
        assert await reader == 7
        inbox.offer(8)
        inbox.fail(ValueError("gone"))
        assert await anext(inbox) == 8
        with pytest.raises(ValueError, match="gone"):
            await anext(inbox)

    asyncio.run(scenario())


def test_a_cancelled_reader_passes_its_wake_up_on():
    async def scenario() -> None:
        inbox: Inbox[int] = Inbox(items_max=2)
        first = asyncio.create_task(anext(inbox))
        second = asyncio.create_task(anext(inbox))
        await asyncio.sleep(0)
        inbox.offer(1)
        first.cancel()
        async with asyncio.timeout(1):
            assert await second == 1
        assert first.cancelled()

    asyncio.run(scenario())


def test_closing_ends_every_waiting_reader():
    async def scenario() -> None:
        inbox: Inbox[int] = Inbox(items_max=2)
        readers = [asyncio.create_task(_collect(inbox)) for _ in range(3)]
        await asyncio.sleep(0)
        inbox.close()
        assert await asyncio.gather(*readers) == [[], [], []]
        assert not inbox.offer(1)
        assert inbox.items_dropped == 0

    asyncio.run(scenario())


async def _collect(inbox: Inbox[int]) -> list[int]:
    return [item async for item in inbox]

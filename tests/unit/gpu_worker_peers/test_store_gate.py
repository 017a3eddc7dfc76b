"""Nothing is stored of a copy that has ended, and its end waits for what is being stored."""

import asyncio

import pytest

from libs.kernel.errors import Unavailable
from services.gpu_worker.peers.store_gate import StoreGate


async def store(gate: StoreGate, ticket_id: str, *, until: asyncio.Event) -> None:
    async with gate.storing(ticket_id):
        await until.wait()


async def test_only_a_copy_that_is_open_is_stored() -> None:
    gate = StoreGate(tickets_max=2)
    with pytest.raises(Unavailable):
        await store(gate, "a", until=asyncio.Event())
    assert gate.open("a")
    assert gate.is_open("a")
    done = asyncio.Event()
    done.set()
    await store(gate, "a", until=done)
    await gate.close("a")
    assert not gate.is_open("a")
    with pytest.raises(Unavailable):
        await store(gate, "a", until=done)


async def test_closing_waits_for_what_is_being_stored_and_lets_nothing_more_in() -> None:
    gate = StoreGate(tickets_max=2)
    gate.open("a")
    stored = [asyncio.Event(), asyncio.Event()]
    storing = [asyncio.create_task(store(gate, "a", until=each)) for each in stored]
    await asyncio.sleep(0)
    closing = asyncio.create_task(gate.close("a"))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await store(gate, "a", until=stored[0])
    stored[0].set()
    await storing[0]
    assert not closing.done()
    stored[1].set()
    await asyncio.gather(storing[1], closing)


async def test_a_store_that_fails_is_over_too() -> None:
    gate = StoreGate(tickets_max=1)
    gate.open("a")
    with pytest.raises(ValueError, match="broken"):
        async with gate.storing("a"):
            raise ValueError("broken")
    await gate.close("a")


@pytest.mark.parametrize("tickets_max", [1, 3])
async def test_there_are_no_more_copies_than_the_bound(tickets_max: int) -> None:
    gate = StoreGate(tickets_max=tickets_max)
    assert all(gate.open(f"copy-{number}") for number in range(tickets_max))
    assert not gate.open("one-more")
    assert gate.open("copy-0"), "one that is open already is no further one"
    await gate.close("copy-0")
    assert gate.open("one-more")


async def test_closing_all_waits_for_all() -> None:
    gate = StoreGate(tickets_max=2)
    stored = asyncio.Event()
    for ticket_id in ("a", "b"):
        gate.open(ticket_id)
    storing = asyncio.create_task(store(gate, "b", until=stored))
    await asyncio.sleep(0)
    closing = asyncio.create_task(gate.close_all())
    await asyncio.sleep(0)
    assert not gate.is_open("a")
    assert not gate.is_open("b")
    assert not closing.done()
    stored.set()
    await asyncio.gather(storing, closing)


async def test_two_who_close_the_same_copy_both_wait() -> None:
    gate = StoreGate(tickets_max=1)
    gate.open("a")
    stored = asyncio.Event()
    storing = asyncio.create_task(store(gate, "a", until=stored))
    await asyncio.sleep(0)
    closings = [asyncio.create_task(gate.close("a")) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(closing.done() for closing in closings)
    stored.set()
    await asyncio.gather(storing, *closings)
    await gate.close("a")

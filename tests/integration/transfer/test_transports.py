"""What every transport guarantees: one suite over loopback, TCP and UCX."""

import asyncio
import time
from typing import Any

import pytest

from libs.kernel.errors import ContractViolation, InvariantViolation
from libs.kernel.rng import Rng
from libs.kernel.units import KIB, MIB, NS_PER_MS, NS_PER_S
from libs.transfer.transport import (
    HEADER_BYTES_MAX,
    ConnectionLost,
    PeerSilent,
    PeerUnreachable,
)

SOON_NS = 10 * NS_PER_S
SIZES = (0, 1, 20 * KIB, 64 * KIB, 64 * KIB + 1, 3 * MIB, 17 * MIB + 5)


def some_bytes(count: int, *, seed: int = 1) -> bytes:
    return Rng(seed).randbytes(count)


async def test_bodies_of_every_size_arrive_as_they_were_sent(link: Any) -> None:
    async with link() as world:
        connection = await world.connect()
        for size in SIZES:
            body = some_bytes(size)
            await connection.send(b"echo", [body], timeout_ns=SOON_NS)
            answer = await connection.receive(timeout_ns=SOON_NS)
            assert answer.header == b"echo"
            assert answer.body == body, f"{size} bytes differ"


async def test_many_buffers_make_one_body(link: Any) -> None:
    async with link() as world:
        connection = await world.connect()
        parts = [some_bytes(size, seed=size) for size in (5, 0, 100 * KIB, 1, 2 * MIB)]
        views = [parts[0], bytearray(parts[1]), *map(memoryview, parts[2:])]
        await connection.send(b"echo", views, timeout_ns=SOON_NS)
        answer = await connection.receive(timeout_ns=SOON_NS)
        assert answer.body == b"".join(parts)


async def test_messages_arrive_in_order_while_both_sides_send(link: Any) -> None:
    async with link() as world:
        connection = await world.connect()
        sizes = [(number * 7919) % (300 * KIB) for number in range(60)]

        async def send_all() -> None:
            for number, size in enumerate(sizes):
                header = b"%d" % number
                await connection.send(header, [bytes([number]) * size], timeout_ns=SOON_NS)

        sending = asyncio.create_task(send_all())
        for number, size in enumerate(sizes):
            answer = await connection.receive(timeout_ns=SOON_NS)
            assert answer.header == b"%d" % number
            assert answer.body == bytes([number]) * size
        await sending


async def test_a_body_is_received_where_the_caller_wants_it(link: Any) -> None:
    async with link() as world:
        connection = await world.connect()
        for size in (10, 2 * MIB):
            memory = bytearray(4 * MIB)

            def allocate(header: bytes, count: int, memory: bytearray = memory) -> memoryview:
                assert header == b"echo"
                return memoryview(memory)[:count]

            body = some_bytes(size)
            await connection.send(b"echo", [body], timeout_ns=SOON_NS)
            answer = await connection.receive(timeout_ns=SOON_NS, allocate=allocate)
            assert answer.body.obj is memory
            assert memory[:size] == body
            assert not any(memory[size:])


async def test_a_slow_reader_holds_the_sender_back(link: Any) -> None:
    async with link() as world:
        connection, other = await world.connect(), await world.connect()
        await connection.send(b"deaf", [], timeout_ns=SOON_NS)
        body = some_bytes(8 * MIB)

        async def send_all() -> None:
            for _ in range(8):
                await connection.send(b"echo", [body], timeout_ns=SOON_NS)

        sending = asyncio.create_task(send_all())
        done, _ = await asyncio.wait({sending}, timeout=0.3)
        assert not done, "64 MiB went to a peer that reads nothing"
        await other.send(b"hear", [], timeout_ns=SOON_NS)
        for _ in range(8):
            answer = await connection.receive(timeout_ns=SOON_NS)
            assert answer.body == body
        await sending


async def test_what_was_sent_before_the_end_still_arrives(link: Any) -> None:
    async with link() as world:
        connection = await world.connect()
        await connection.send(b"echo", [b"last words"], timeout_ns=SOON_NS)
        await connection.send(b"leave", [], timeout_ns=SOON_NS)
        answer = await connection.receive(timeout_ns=SOON_NS)
        assert answer.body == b"last words"
        with pytest.raises(ConnectionLost):
            await connection.receive(timeout_ns=SOON_NS)
        assert connection.is_closed


async def test_a_killed_peer_ends_a_pending_receive_at_once(mortal: Any) -> None:
    async with mortal() as world:
        connection = await world.connect()
        await connection.send(b"echo", [some_bytes(MIB)], timeout_ns=SOON_NS)
        await connection.receive(timeout_ns=SOON_NS)
        receiving = asyncio.create_task(connection.receive())
        await asyncio.sleep(0)
        killed_at_ns = time.monotonic_ns()
        world.kill()
        with pytest.raises(ConnectionLost):
            await receiving
        assert time.monotonic_ns() - killed_at_ns < 2 * NS_PER_S
        with pytest.raises(ConnectionLost):
            await connection.send(b"echo", [b"again"], timeout_ns=SOON_NS)


async def test_a_peer_killed_under_a_large_send_is_an_error_and_no_hang(mortal: Any) -> None:
    async with mortal() as world:
        connection = await world.connect()
        await connection.send(b"deaf", [], timeout_ns=SOON_NS)
        sending = asyncio.create_task(_send_for_ever(connection, timeout_ns=SOON_NS))
        done, _ = await asyncio.wait({sending}, timeout=0.2)
        assert not done
        world.kill()
        with pytest.raises(ConnectionLost):
            await sending


async def _send_for_ever(connection: Any, *, timeout_ns: int) -> None:
    while True:
        await connection.send(b"echo", [some_bytes(8 * MIB)], timeout_ns=timeout_ns)


async def test_a_frozen_peer_is_silent_not_a_hang(mortal: Any) -> None:
    async with mortal() as world:
        sender, receiver = await world.connect(), await world.connect()
        world.freeze()
        with pytest.raises(PeerSilent):
            await _send_for_ever(sender, timeout_ns=300 * NS_PER_MS)
        with pytest.raises(PeerSilent):
            await receiver.receive(timeout_ns=300 * NS_PER_MS)
        assert sender.is_closed
        assert receiver.is_closed
        with pytest.raises(PeerUnreachable):
            await world.transport.connect(world.address, timeout_ns=300 * NS_PER_MS)


async def test_after_a_lost_connection_a_new_one_serves(link: Any) -> None:
    async with link() as world:
        first = await world.connect()
        await first.send(b"echo", [some_bytes(MIB)], timeout_ns=SOON_NS)
        await first.receive(timeout_ns=SOON_NS)
        world.peer.connections[0].close()
        with pytest.raises(ConnectionLost):
            await first.receive(timeout_ns=SOON_NS)
        second = await world.connect()
        body = some_bytes(MIB, seed=2)
        await second.send(b"echo", [body], timeout_ns=SOON_NS)
        assert (await second.receive(timeout_ns=SOON_NS)).body == body


async def test_connections_do_not_mix_up_their_messages(link: Any) -> None:
    async with link() as world:

        async def converse(number: int) -> None:
            connection = await world.connect()
            body = some_bytes(200 * KIB, seed=number)
            for _ in range(10):
                await connection.send(b"%d" % number, [body], timeout_ns=SOON_NS)
                answer = await connection.receive(timeout_ns=SOON_NS)
                assert answer.header == b"%d" % number
                assert answer.body == body

        await asyncio.gather(*(converse(number) for number in range(8)))


async def test_closing_ends_a_pending_receive(link: Any) -> None:
    async with link() as world:
        connection = await world.connect()
        receiving = asyncio.create_task(connection.receive())
        await asyncio.wait({receiving}, timeout=0.05)
        connection.close()
        with pytest.raises(ConnectionLost):
            await receiving
        connection.close()
        assert connection.is_closed


async def test_a_cancelled_call_closes_the_connection(link: Any) -> None:
    async with link() as world:
        connection = await world.connect()
        receiving = asyncio.create_task(connection.receive())
        await asyncio.wait({receiving}, timeout=0.05)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        with pytest.raises(ConnectionLost):
            await connection.send(b"echo", [], timeout_ns=SOON_NS)


async def test_two_receivers_on_one_connection_are_a_mistake(link: Any) -> None:
    async with link() as world:
        connection = await world.connect()
        receiving = asyncio.create_task(connection.receive())
        await asyncio.wait({receiving}, timeout=0.05)
        with pytest.raises(InvariantViolation):
            await connection.receive()
        connection.close()
        await asyncio.wait({receiving})
        assert isinstance(receiving.exception(), ConnectionLost)


async def test_an_oversized_header_is_refused_and_the_connection_stays(link: Any) -> None:
    async with link() as world:
        connection = await world.connect()
        with pytest.raises(ContractViolation):
            await connection.send(bytes(HEADER_BYTES_MAX + 1), [], timeout_ns=SOON_NS)
        largest = bytes(HEADER_BYTES_MAX)
        await connection.send(largest, [b"still here"], timeout_ns=SOON_NS)
        answer = await connection.receive(timeout_ns=SOON_NS)
        assert (answer.header, answer.body) == (largest, b"still here")


async def test_a_closed_listener_is_unreachable(link: Any) -> None:
    async with link() as world:
        await world.transport.close()
        with pytest.raises(PeerUnreachable):
            await world.connect()

"""A transfer delivers each piece, verified, over every transport and through every fault."""

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.contracts.transfers import (
    TRANSFER_ANSWERS,
    CarryPieces,
    OfferTransfer,
    TransferAccepted,
    TransferRefusal,
)
from libs.contracts.wire import encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import KIB, MIB, NS_PER_MS, NS_PER_S
from libs.transfer.loopback import LoopbackFaults, LoopbackTransport
from libs.transfer.opening import open_transport
from libs.transfer.receiving import TransferInbox
from libs.transfer.sending import send_transfer
from libs.transfer.ticket import (
    RefusedByReceiver,
    TransferCorrupted,
    TransferOptions,
    TransferSummary,
    TransferTicket,
    pack_pieces,
)
from libs.transfer.transport import Connection, ConnectionLost, PeerSilent, Transport
from tests.integration.transfer.memory_ends import MemorySink, MemorySource, a_ticket
from tests.integration.transfer.sending_process import SIZES

REPOSITORY = Path(__file__).resolve().parents[3]
SOON_NS = 10 * NS_PER_S
SMALL = TransferOptions(buffer_bytes_min=4 * KIB, buffer_bytes_max=8 * KIB, stall_ns=2 * NS_PER_S)
SCATTERED = (1, 300 * KIB, 70, 64 * KIB, 3 * MIB, 900 * KIB, 12, 1 * MIB, 64 * KIB)


@dataclass
class Site:
    """One worker's inbox with a sink for each expected ticket, and how to reach it."""

    transport: Transport
    address: str
    sinks: dict[str, MemorySink]
    received: list[TransferTicket] = field(default_factory=list)
    ended_by: asyncio.Queue[Exception] = field(default_factory=asyncio.Queue)

    @property
    def faults(self) -> LoopbackFaults:
        assert isinstance(self.transport, LoopbackTransport)
        return self.transport.listener_at(self.address).faults

    async def connect(self) -> Connection:
        return await self.transport.connect(self.address, timeout_ns=SOON_NS)

    async def send(
        self,
        source: MemorySource,
        *,
        connection: Connection | None = None,
        ticket: TransferTicket | None = None,
        **options: Any,
    ) -> TransferSummary:
        return await send_transfer(
            connection or await self.connect(),
            ticket=ticket or a_ticket(),
            pieces=source.pieces,
            fill=source.fill,
            **options,
        )


@asynccontextmanager
async def a_site(
    kind: str = "loopback",
    *,
    sink: MemorySink | None = None,
    executor: ThreadPoolExecutor | None = None,
    **sinks: MemorySink,
) -> AsyncIterator[Site]:
    transport = open_transport(kind, host="127.0.0.1")  # type: ignore[arg-type]
    site = Site(transport, "", {"kv/1": sink or MemorySink(), **sinks})
    inbox = TransferInbox(
        open_sink=lambda ticket: site.sinks.get(ticket.ticket_id),
        received=site.received.append,
        executor=executor,
    )

    async def serve(connection: Connection) -> None:
        try:
            await inbox.serve(connection)
        except (Unavailable, ContractViolation) as error:
            site.ended_by.put_nowait(error)
            raise

    try:
        site.address = (await transport.listen(serve)).address
        yield site
    finally:
        await transport.close()


async def test_scattered_pieces_arrive_each_once_and_equal(kind: str) -> None:
    sink, source = MemorySink(), MemorySource(SCATTERED)
    async with a_site(kind, sink=sink) as site:
        summary = await site.send(source)
        assert sink.content == source.content
        assert sorted(sink.taken) == sorted(source.content)
        assert source.filled == [piece.piece_index for piece in source.pieces]
        assert (summary.bytes, summary.pieces_sent) == (sum(SCATTERED), len(SCATTERED))
        assert (summary.pieces_resent, summary.pieces_held) == (0, 0)
        assert site.received == [a_ticket()]


async def test_gathering_and_taking_run_on_the_callers_threads(kind: str) -> None:
    sink, source = MemorySink(), MemorySource(SCATTERED)
    threads: set[str] = set()
    sink.before_take = lambda _: threads.add(threading.current_thread().name)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="source") as gathering,
        ThreadPoolExecutor(1, thread_name_prefix="target") as taking,
    ):

        def fill(piece_index: int, target: memoryview) -> None:
            threads.add(threading.current_thread().name)
            source.fill(piece_index, target)

        async with a_site(kind, sink=sink, executor=taking) as site:
            await send_transfer(
                await site.connect(),
                ticket=a_ticket(),
                pieces=source.pieces,
                fill=fill,
                executor=gathering,
            )
    assert sink.content == source.content
    assert threads == {"source_0", "target_0"}


async def test_one_connection_carries_one_transfer_after_the_other(kind: str) -> None:
    sinks = {f"kv-{number}": MemorySink() for number in range(3)}
    async with a_site(kind, **sinks) as site:
        connection = await site.connect()
        for number, (ticket_id, sink) in enumerate(sinks.items()):
            source = MemorySource((300 * KIB, 5 * MIB, 1), seed=number)
            await site.send(source, connection=connection, ticket=a_ticket(ticket_id=ticket_id))
            assert sink.content == source.content
        with pytest.raises(RefusedByReceiver, match="unknown_ticket"):
            await site.send(source, connection=connection, ticket=a_ticket(ticket_id="kv-9"))
        assert not connection.is_closed


async def test_transfers_on_many_connections_run_side_by_side(kind: str) -> None:
    sinks = {f"kv-{number}": MemorySink() for number in range(6)}
    async with a_site(kind, **sinks) as site:
        sources = {name: MemorySource((70_000,) * 30, seed=n) for n, name in enumerate(sinks)}
        await asyncio.gather(
            *(
                site.send(source, ticket=a_ticket(ticket_id=name))
                for name, source in sources.items()
            )
        )
        for name, sink in sinks.items():
            assert sink.content == sources[name].content


async def test_a_transfer_of_nothing_is_complete() -> None:
    async with a_site() as site:
        summary = await site.send(MemorySource(()))
        assert (summary.bytes, summary.pieces_sent) == (0, 0)


@pytest.mark.parametrize("messages_until_cut", range(0, 34, 3))
async def test_after_a_cut_anywhere_only_what_is_missing_is_sent(messages_until_cut: int) -> None:
    sink, source = MemorySink(), MemorySource((3 * KIB,) * 32)
    async with a_site(sink=sink) as site:
        site.faults.messages_until_cut = messages_until_cut
        with pytest.raises(ConnectionLost):
            await site.send(source, options=SMALL)
        taken = len(sink.taken)
        summary = await site.send(source, options=SMALL)
        assert sink.content == source.content
        assert sorted(sink.taken) == sorted(source.content), "a piece was taken twice"
        assert summary.pieces_held == taken
        assert summary.pieces_sent == len(source.pieces) - taken
        assert site.received == [a_ticket()]


@pytest.mark.parametrize("kind", ["tcp", "ucx"], indirect=True)
async def test_a_killed_source_costs_only_what_was_under_way(kind: str) -> None:
    sink = MemorySink()
    async with a_site(kind, sink=sink) as site:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.transfer.sending_process"),
            *(kind, site.address),
            cwd=REPOSITORY,
        )
        sink.before_take = lambda index: process.kill() if index == 250 else None
        assert isinstance(await site.ended_by.get(), ConnectionLost)
        assert await process.wait() == -signal.SIGKILL
        assert not site.received
        sink.before_take = lambda _: None
        source = MemorySource(SIZES)
        summary = await site.send(source)
        assert sink.content == source.content
        assert sorted(sink.taken) == sorted(source.content), "a piece was taken twice"
        assert summary.pieces_held >= 150
        assert site.received == [a_ticket()]


async def test_a_complete_transfer_offered_again_costs_no_piece() -> None:
    source = MemorySource(SCATTERED)
    async with a_site() as site:
        await site.send(source)
        again = await site.send(source)
        assert (again.bytes, again.pieces_held) == (0, len(SCATTERED))
        assert len(site.received) == 1


async def test_a_corrupted_buffer_is_sent_again() -> None:
    sink, source = MemorySink(), MemorySource((3 * KIB,) * 32)
    async with a_site(sink=sink) as site:
        connection = await site.connect()
        sink.before_take = lambda _: corrupt_one_more(site, sink)
        summary = await site.send(source, connection=connection, options=SMALL)
        assert sink.content == source.content
        assert sorted(sink.taken) == sorted(source.content)
        assert summary.pieces_resent > 0


def corrupt_one_more(site: Site, sink: MemorySink) -> None:
    """Let the next body suffer, once in a while."""
    if len(sink.taken) % 10 == 5:
        site.faults.bodies_to_corrupt = 1


async def test_a_link_that_corrupts_everything_fails_and_stores_nothing() -> None:
    sink, source = MemorySink(), MemorySource((3 * KIB,) * 8)

    async with a_site(sink=sink) as site:

        def fill(piece_index: int, target: memoryview) -> None:
            site.faults.bodies_to_corrupt = 1_000  # The offer has passed: now every body is hurt.
            source.fill(piece_index, target)

        connection = await site.connect()
        with pytest.raises(TransferCorrupted):
            await send_transfer(
                connection, ticket=a_ticket(), pieces=source.pieces, fill=fill, options=SMALL
            )
        assert not sink.taken
        assert source.filled.count(100) == 1 + SMALL.corruptions_max
        assert connection.is_closed


async def test_a_stale_epoch_is_refused_before_anything_is_sent() -> None:
    sink, source = MemorySink(epoch=2), MemorySource(SCATTERED)
    async with a_site(sink=sink) as site:
        with pytest.raises(RefusedByReceiver) as caught:
            await site.send(source)
        assert caught.value.reason is TransferRefusal.STALE_EPOCH
        assert not source.filled
        assert not sink.taken


async def test_an_epoch_that_ends_midway_stops_the_transfer(kind: str) -> None:
    sink, source = MemorySink(), MemorySource((300 * KIB,) * 40)

    def move_on(piece_index: int) -> None:
        if piece_index == 110:
            sink.epoch = 2

    sink.before_take = move_on
    async with a_site(kind, sink=sink) as site:
        connection = await site.connect()
        with pytest.raises(RefusedByReceiver) as caught:
            await site.send(source, connection=connection)
        assert caught.value.reason is TransferRefusal.STALE_EPOCH
        assert len(sink.taken) < len(source.pieces)
        taken = len(sink.taken)
        # The connection has an answer to all that was under way, and serves on: from nothing, for
        # under a new epoch the blocks may be others.
        sink.before_take = lambda _: None
        newer = a_ticket(replica_epoch=2)
        summary = await site.send(source, connection=connection, ticket=newer)
        assert summary.pieces_held == 0
        assert sink.content == source.content
        assert len(sink.taken) == taken + len(source.pieces)


async def test_an_older_epoch_of_a_known_ticket_is_refused_by_the_ledger() -> None:
    sink, source = MemorySink(epoch=2), MemorySource((10,))
    async with a_site(sink=sink) as site:
        await site.send(source, ticket=a_ticket(replica_epoch=2))
        sink.epoch = 1
        with pytest.raises(RefusedByReceiver, match="stale_epoch"):
            await site.send(source, ticket=a_ticket(replica_epoch=1))


async def test_other_pieces_under_the_same_ticket_are_refused() -> None:
    async with a_site() as site:
        await site.send(MemorySource((10, 20)))
        with pytest.raises(RefusedByReceiver, match="pieces_differ"):
            await site.send(MemorySource((10, 21)))


async def test_a_full_sink_refuses_and_later_takes_the_rest() -> None:
    sink, source = MemorySink(bytes_max=50 * KIB), MemorySource((3 * KIB,) * 32)
    async with a_site(sink=sink) as site:
        with pytest.raises(RefusedByReceiver, match="sink_unavailable"):
            await site.send(source, options=SMALL)
        sink.bytes_max = None
        summary = await site.send(source, options=SMALL)
        assert sink.content == source.content
        assert summary.pieces_held > 0


async def test_no_more_is_gathered_ahead_than_the_lanes_allow() -> None:
    sink, source = MemorySink(), MemorySource((4 * KIB,) * 100)
    ahead: list[int] = []
    sink.before_take = lambda _: ahead.append(len(source.filled) - len(sink.taken))
    async with a_site(sink=sink) as site:
        await site.send(source, options=SMALL)
    pieces_in_flight = SMALL.buffers_in_flight * SMALL.buffer_bytes_max // (4 * KIB)
    assert 1 < max(ahead) <= pieces_in_flight


async def test_a_frozen_receiver_is_silent_not_a_hang() -> None:
    sink, source = MemorySink(), MemorySource((3 * KIB,) * 32)
    options = TransferOptions(
        buffer_bytes_min=4 * KIB, buffer_bytes_max=8 * KIB, stall_ns=200 * NS_PER_MS
    )
    async with a_site(sink=sink) as site:
        sink.before_take = lambda index: site.faults.freeze() if index == 110 else None
        connection = await site.connect()
        with pytest.raises(PeerSilent):
            await site.send(source, connection=connection, options=options)
        assert connection.is_closed
        site.faults.thaw()
        sink.before_take = lambda _: None
        summary = await site.send(source, options=options)
        assert sink.content == source.content
        assert summary.pieces_held >= 10


async def test_a_source_that_fails_ends_the_transfer_and_both_ends_know() -> None:
    source = MemorySource((3 * KIB,) * 32)

    def fill(piece_index: int, target: memoryview) -> None:
        if piece_index == 120:
            raise Unavailable("the block is gone", retry_after_ns=1)
        source.fill(piece_index, target)

    async with a_site() as site:
        connection = await site.connect()
        with pytest.raises(Unavailable, match="the block is gone"):
            await send_transfer(
                connection, ticket=a_ticket(), pieces=source.pieces, fill=fill, options=SMALL
            )
        assert connection.is_closed
        assert not site.received


async def test_a_bug_in_a_sink_ends_the_connection_and_shows() -> None:
    def fail(_: int) -> None:
        raise KeyError("block 7")

    source = MemorySource((3 * KIB,) * 4)
    shown: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(lambda _, what: shown.put_nowait(what))
    async with a_site(sink=MemorySink(before_take=fail)) as site:
        with pytest.raises(ConnectionLost):
            await site.send(source, options=SMALL)
        assert isinstance((await shown.get())["exception"], KeyError)


async def test_the_same_ticket_on_a_new_connection_ends_the_earlier_run() -> None:
    sink, source = MemorySink(), MemorySource((3 * KIB,) * 32)
    reached, go_on = threading.Event(), threading.Event()

    def wait(piece_index: int) -> None:
        if piece_index == 110 and not go_on.is_set():
            reached.set()
            go_on.wait(10)

    sink.before_take = wait
    with ThreadPoolExecutor(1) as executor:
        async with a_site(sink=sink, executor=executor) as site:
            first = asyncio.create_task(site.send(source, options=SMALL))
            await asyncio.to_thread(reached.wait, 10)
            second = asyncio.create_task(site.send(source, options=SMALL))
            with pytest.raises(ConnectionLost):
                await _released(first, go_on)
            summary = await second
            assert sink.content == source.content
            assert sorted(sink.taken) == sorted(source.content), "a piece was taken twice"
            assert summary.pieces_held >= 10
            assert site.received == [a_ticket()]


async def _released(first: "asyncio.Task[TransferSummary]", go_on: threading.Event) -> None:
    """Let the sink go on once the second offer has had time to arrive behind it."""
    await asyncio.sleep(0.05)
    go_on.set()
    await first


@pytest.mark.parametrize(
    ("indices", "size"), [((999,), 10), ((100, 100), 20), ((100,), 11), ((100, 101), 15)]
)
async def test_a_buffer_that_is_not_what_was_offered_ends_the_connection(
    indices: tuple[int, ...], size: int
) -> None:
    async with a_site() as site:
        connection = await site.connect()
        request = CarryPieces(buffer_number=0, checksum=0, piece_indices=indices)
        await _offer_only(connection, MemorySource((10, 10)))
        await connection.send(encode(request), [bytes(size)], timeout_ns=SOON_NS)
        with pytest.raises(ConnectionLost):
            await connection.receive(timeout_ns=SOON_NS)
        assert isinstance(await site.ended_by.get(), ContractViolation)


async def _offer_only(connection: Connection, source: MemorySource) -> None:
    """Make an offer and take its answer, as send_transfer does before the first buffer."""
    offer = OfferTransfer(ticket_id="kv/1", replica_epoch=1, pieces=len(source.pieces))
    await connection.send(encode(offer), [pack_pieces(source.pieces)], timeout_ns=SOON_NS)
    answer = await connection.receive(timeout_ns=SOON_NS)
    assert isinstance(TRANSFER_ANSWERS.decode(answer.header), TransferAccepted)

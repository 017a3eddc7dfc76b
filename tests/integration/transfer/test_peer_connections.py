"""Links are made ahead, lent to one at a time, made again after a loss, and measured."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from libs.kernel.units import KIB, NS_PER_MS, NS_PER_S
from libs.transfer.loopback import LoopbackTransport
from libs.transfer.peer_connections import LinkOptions, PeerConnections
from libs.transfer.receiving import TransferInbox
from libs.transfer.sending import send_transfer
from libs.transfer.tcp import TcpTransport
from libs.transfer.ticket import RefusedByReceiver, TransferOptions, TransferSummary
from libs.transfer.transport import Connection, ConnectionLost, PeerUnreachable
from tests.integration.transfer.memory_ends import MemorySink, MemorySource, a_ticket

SOON_NS = 10 * NS_PER_S
QUICK = LinkOptions(connect_ns=NS_PER_S, pause_min_ns=NS_PER_MS, pause_max_ns=4 * NS_PER_MS)
SMALL = TransferOptions(buffer_bytes_min=4 * KIB, buffer_bytes_max=8 * KIB)


class Peer:
    """An inbox behind a loopback address, counting who came."""

    def __init__(self, transport: LoopbackTransport, sink: MemorySink) -> None:
        self.transport = transport
        self.sink = sink
        self.address = ""
        self.connections: list[Connection] = []
        self._inbox = TransferInbox(open_sink=lambda _: sink, received=lambda _: None)

    async def listen(self) -> None:
        self.address = (await self.transport.listen(self._serve)).address

    async def _serve(self, connection: Connection) -> None:
        self.connections.append(connection)
        await self._inbox.serve(connection)


@asynccontextmanager
async def a_pair() -> AsyncIterator[tuple[PeerConnections, Peer]]:
    transport = LoopbackTransport(host="here")
    peer = Peer(transport, MemorySink())
    connections = PeerConnections("worker-1", transport, options=QUICK)
    try:
        await peer.listen()
        yield connections, peer
    finally:
        await connections.close()
        await transport.close()


async def until_ready(connections: PeerConnections, address: str) -> None:
    while not connections.is_ready(address, purpose="kv"):
        await asyncio.sleep(0.001)


async def send(connections: PeerConnections, peer: Peer, source: MemorySource) -> TransferSummary:
    return await connections.send_transfer(
        peer.address,
        purpose="kv",
        ticket=a_ticket(),
        pieces=source.pieces,
        fill=source.fill,
        timeout_ns=SOON_NS,
        options=SMALL,
    )


async def test_a_connection_made_ahead_is_the_one_that_is_lent() -> None:
    async with a_pair() as (connections, peer):
        connections.connect_ahead(peer.address, purpose="kv")
        connections.connect_ahead(peer.address, purpose="kv")
        await until_ready(connections, peer.address)
        assert not connections.is_ready(peer.address, purpose="weights")
        for _ in range(2):
            async with connections.borrow(peer.address, purpose="kv", timeout_ns=SOON_NS):
                pass
        assert len(peer.connections) == 1


async def test_connecting_ahead_goes_on_until_the_peer_is_there() -> None:
    first = TcpTransport(host="127.0.0.1")
    address = (await first.listen(lambda connection: connection.receive())).address
    await first.close()
    transport = TcpTransport(host="127.0.0.1")
    connections = PeerConnections("worker-1", transport, options=QUICK)
    connections.connect_ahead(address, purpose="kv")
    with pytest.raises(PeerUnreachable):
        async with connections.borrow(address, purpose="kv", timeout_ns=50 * NS_PER_MS):
            pass
    again = TcpTransport(host="127.0.0.1", port=int(address.rpartition(":")[2]))
    try:

        async def keep(connection: Connection) -> None:
            while True:
                await connection.receive()

        await again.listen(keep)
        await until_ready(connections, address)
    finally:
        await connections.close()
        await transport.close()
        await again.close()


async def test_a_connection_is_lent_to_one_at_a_time_and_per_purpose() -> None:
    async with a_pair() as (connections, peer):
        async with connections.borrow(peer.address, purpose="kv", timeout_ns=SOON_NS) as lent:
            with pytest.raises(PeerUnreachable):
                await _borrow_briefly(connections, peer)
            async with connections.borrow(
                peer.address, purpose="weights", timeout_ns=SOON_NS
            ) as other:
                assert other is not lent
        await _borrow_briefly(connections, peer)


async def _borrow_briefly(connections: PeerConnections, peer: Peer) -> None:
    async with connections.borrow(peer.address, purpose="kv", timeout_ns=30 * NS_PER_MS):
        pass


async def test_a_lost_connection_is_made_again() -> None:
    async with a_pair() as (connections, peer):
        async with connections.borrow(peer.address, purpose="kv", timeout_ns=SOON_NS) as lent:
            lent.close()
        async with connections.borrow(peer.address, purpose="kv", timeout_ns=SOON_NS) as lent:
            assert not lent.is_closed
            while len(peer.connections) < 2:
                await asyncio.sleep(0.001)


async def test_a_transfer_through_cuts_arrives_whole_and_is_measured() -> None:
    source = MemorySource((3 * KIB,) * 64)
    async with a_pair() as (connections, peer):
        faults = peer.transport.listener_at(peer.address).faults

        def cut_now_and_then(piece_index: int) -> None:
            if len(peer.sink.taken) in (10, 30, 50):
                faults.messages_until_cut = 1

        peer.sink.before_take = cut_now_and_then
        summary = await send(connections, peer, source)
        assert peer.sink.content == source.content
        assert sorted(peer.sink.taken) == sorted(source.content), "a piece was taken twice"
        assert summary.pieces_held > 0
        assert len(peer.connections) >= 3
        assert connections.rates.bytes_per_s(peer.address) is not None


async def test_a_refusal_is_not_tried_again() -> None:
    async with a_pair() as (connections, peer):
        peer.sink.epoch = 2
        with pytest.raises(RefusedByReceiver):
            await send(connections, peer, MemorySource((10,)))
        assert len(peer.connections) == 1


async def test_a_transfer_ends_at_its_time_limit_whatever_the_peer_does() -> None:
    source = MemorySource((3 * KIB,) * 64)
    async with a_pair() as (connections, peer):
        faults = peer.transport.listener_at(peer.address).faults
        peer.sink.before_take = lambda _: faults.freeze()
        with pytest.raises(ConnectionLost, match="timed out"):
            await connections.send_transfer(
                peer.address,
                purpose="kv",
                ticket=a_ticket(),
                pieces=source.pieces,
                fill=source.fill,
                timeout_ns=100 * NS_PER_MS,
                options=SMALL,
            )
        faults.thaw()


async def test_a_forgotten_peer_is_closed_and_not_connected_again() -> None:
    async with a_pair() as (connections, peer):
        connections.connect_ahead(peer.address, purpose="kv")
        await until_ready(connections, peer.address)
        connections.forget(peer.address)
        assert not connections.is_ready(peer.address, purpose="kv")
        peer.connections[0].close()
        await asyncio.sleep(0.02)
        assert len(peer.connections) == 1


async def test_a_borrowed_connection_carries_a_transfer() -> None:
    source = MemorySource((300 * KIB,) * 3)
    async with a_pair() as (connections, peer):
        async with connections.borrow(peer.address, purpose="kv", timeout_ns=SOON_NS) as lent:
            await send_transfer(lent, ticket=a_ticket(), pieces=source.pieces, fill=source.fill)
        assert peer.sink.content == source.content

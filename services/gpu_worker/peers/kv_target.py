"""Takes KV in: as the lead of a target that is offered blocks, and as a rank that stores them.

    offered --commit--> offered --end, or the link is lost, or the replica is closed--> ended

The worker reserves blocks for an offer and gets back what was not committed; between the two the
ticket is closed on every rank, so that nothing late is written to a block that is in use again.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from libs.contracts.peers import (
    BLOCKS_PER_BATCH_MAX,
    BLOCKS_PER_COPY_MAX,
    CommitKv,
    EndKv,
    KvAwaited,
    KvCommitted,
    KvEnded,
    KvOffered,
    OfferKv,
    PeerRefusal,
    StoreKv,
)
from libs.kernel.errors import ContractViolation, Unavailable
from libs.transfer.spans import Span
from libs.transfer.ticket import TransferTicket
from services.gpu_worker.peers.bodies import pack_pairs, unpack_integers
from services.gpu_worker.peers.inbox import Inbox
from services.gpu_worker.peers.kv_plan import KvGeometry, Rectangle, kv_ranks
from services.gpu_worker.peers.loop_thread import wait_for_loop
from services.gpu_worker.peers.open_replica import OpenReplica
from services.gpu_worker.peers.ports import EngineAccess, PeerHost
from services.gpu_worker.peers.questions import Refusing
from services.gpu_worker.peers.replica_book import ReplicaBook


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCopy:
    """One copy into a replica that this worker leads."""

    ticket_id: str
    replica: OpenReplica


class KvTarget:
    """The receiving side of copies of KV."""

    def __init__(
        self,
        *,
        worker_id: str,
        host: PeerHost,
        engine: EngineAccess,
        geometry: KvGeometry,
        replicas: ReplicaBook,
        inbox: Inbox,
    ) -> None:
        self._worker_id = worker_id
        self._host = host
        self._engine = engine
        self._geometry = geometry
        self._replicas = replicas
        self._inbox = inbox
        self._copies: dict[str, KvCopy] = {}
        self._writing: set[asyncio.Task[None]] = set()

    async def offer(self, question: OfferKv, body: memoryview) -> tuple[KvCopy, KvOffered, bytes]:
        """As a lead, begin a copy: answer with the blocks that are wanted. Raises: Refusing."""
        hashes = unpack_integers(body, integers_max=BLOCKS_PER_COPY_MAX)
        replica = self._replicas.find(question.replica_id, replica_epoch=question.replica_epoch)
        ticket_id = question.ticket_id
        if ticket_id in self._copies:
            raise ContractViolation(f"copy {ticket_id} is under way already")
        if not replica.is_lead:
            raise ContractViolation(f"{self._worker_id} does not lead {question.replica_id}")
        copy = self._copies[ticket_id] = KvCopy(ticket_id=ticket_id, replica=replica)
        try:
            await replica.open_ticket(ticket_id)
            self._require_under_way(copy, ticket_id)
            pairs = await self._host.kv_offered(
                replica_id=question.replica_id,
                replica_epoch=question.replica_epoch,
                ticket_id=ticket_id,
                hashes=hashes,
            )
        except TimeoutError as error:
            await self.end(copy)
            raise Refusing(PeerRefusal.FAILED, "the worker does not come to it") from error
        except Unavailable as error:
            await self.end(copy)
            raise Refusing(PeerRefusal.PEER_LOST, str(error)) from error
        self._require_under_way(copy, ticket_id)
        return copy, KvOffered(), pack_pairs(pairs)

    async def commit(
        self, copy: KvCopy | None, question: CommitKv, body: memoryview
    ) -> KvCommitted:
        """Let sessions find blocks that every rank has stored. Raises: Refusing."""
        hashes = unpack_integers(body, integers_max=BLOCKS_PER_COPY_MAX)
        self._require_under_way(copy, question.ticket_id)
        assert copy is not None
        await self._host.kv_committed(
            replica_id=copy.replica.roster.replica_id,
            replica_epoch=copy.replica.roster.replica_epoch,
            ticket_id=copy.ticket_id,
            hashes=hashes,
        )
        return KvCommitted()

    async def finish(self, copy: KvCopy | None, question: EndKv) -> KvEnded:
        """End a copy at its source's wish. Raises: Refusing."""
        self._require_under_way(copy, question.ticket_id)
        assert copy is not None
        await self.end(copy)
        return KvEnded()

    async def end(self, copy: KvCopy) -> None:
        """Close the ticket on all ranks, then give back what was not committed; once."""
        if self._copies.pop(copy.ticket_id, None) is None:
            return
        await copy.replica.close_ticket(copy.ticket_id)
        await self._host.kv_dropped(
            replica_id=copy.replica.roster.replica_id,
            replica_epoch=copy.replica.roster.replica_epoch,
            ticket_id=copy.ticket_id,
        )

    async def end_all(self, replica: OpenReplica) -> None:
        """End every copy into a replica."""
        copies = [copy for copy in self._copies.values() if copy.replica is replica]
        await asyncio.gather(*(self.end(copy) for copy in copies))

    def store(self, question: StoreKv, body: memoryview) -> KvAwaited:
        """As a rank, expect a rectangle of blocks. Raises: Refusing."""
        block_ids = unpack_integers(body, integers_max=BLOCKS_PER_BATCH_MAX)
        replica = self._replicas.find(question.replica_id, replica_epoch=question.replica_epoch)
        if not replica.gate.is_open(question.ticket_id):
            raise Refusing(PeerRefusal.UNKNOWN_TICKET, question.ticket_id)
        rectangle = Rectangle(
            layers=range(question.layer_start, question.layer_stop),
            heads=range(question.head_start, question.head_stop),
        )
        self._require_held(replica, rectangle)
        sink = KvSink(
            target=self,
            ticket_id=question.ticket_id,
            replica=replica,
            rectangle=rectangle,
            block_ids=block_ids,
            blocks_per_piece=question.blocks_per_piece,
        )
        self._inbox.expect(question.transfer_id, sink)
        return KvAwaited()

    async def store_here(
        self,
        *,
        replica_id: str,
        replica_epoch: int,
        ticket_id: str,
        rectangle: Rectangle,
        block_ids: Sequence[int],
        data: memoryview,
    ) -> None:
        """Store what this very worker has exported. Raises: Unavailable."""
        replica = self._replicas.find(replica_id, replica_epoch=replica_epoch)
        await self.import_kv(
            replica, ticket_id=ticket_id, rectangle=rectangle, block_ids=block_ids, data=data
        )

    def is_current(self, replica: OpenReplica, *, ticket_id: str) -> bool:
        """Whether this copy into this replica goes on. May be asked in any thread."""
        return self._replicas.is_current(replica) and replica.gate.is_open(ticket_id)

    async def import_kv(
        self,
        replica: OpenReplica,
        *,
        ticket_id: str,
        rectangle: Rectangle,
        block_ids: Sequence[int],
        data: memoryview,
    ) -> None:
        """Write a rectangle into blocks, unless the copy has ended. Raises: Unavailable.

        Once begun it runs to its end and holds the gate, even if the caller gives up: the ticket
        must not count as closed while the engine still writes.
        """

        async def write() -> None:
            async with replica.gate.storing(ticket_id):
                await self._engine.import_kv(
                    replica_id=replica.roster.replica_id,
                    layers=rectangle.layers,
                    heads=rectangle.heads,
                    block_ids=block_ids,
                    data=data,
                )

        writing = asyncio.create_task(write())
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.shield(writing)

    def bytes_of(self, rectangle: Rectangle, *, blocks: int) -> int:
        """Return the size of a rectangle of so many blocks."""
        return rectangle.cells * blocks * self._geometry.cell_bytes

    def _require_under_way(self, copy: KvCopy | None, ticket_id: str) -> None:
        """Raise: Refusing unless the link carries this copy and it has not ended."""
        if copy is None or copy.ticket_id != ticket_id or ticket_id not in self._copies:
            raise Refusing(PeerRefusal.UNKNOWN_TICKET, ticket_id)

    def _require_held(self, replica: OpenReplica, rectangle: Rectangle) -> None:
        """Raise: ContractViolation unless the rectangle is part of this rank's KV."""
        layers, heads = rectangle.layers, rectangle.heads
        is_held = bool(layers and heads) and any(
            rank.holds(layers=Span(layers.start, layers.stop), heads=Span(heads.start, heads.stop))
            for rank in kv_ranks(replica.roster, self._geometry)
            if rank.worker_id == self._worker_id
        )
        if not is_held:
            raise ContractViolation(f"{layers} and {heads} are not held by {self._worker_id}")


class KvSink:
    """Stores the pieces of one transfer of KV; its methods run in a thread of the network."""

    def __init__(
        self,
        *,
        target: KvTarget,
        ticket_id: str,
        replica: OpenReplica,
        rectangle: Rectangle,
        block_ids: tuple[int, ...],
        blocks_per_piece: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._target = target
        self._ticket_id = ticket_id
        self._replica = replica
        self._rectangle = rectangle
        self._block_ids = block_ids
        self._blocks_per_piece = blocks_per_piece

    def is_current(self, ticket: TransferTicket) -> bool:
        """See Sink."""
        return ticket.replica_epoch == self._replica.roster.replica_epoch and (
            self._target.is_current(self._replica, ticket_id=self._ticket_id)
        )

    def take(self, piece_index: int, data: memoryview) -> None:
        """See Sink: returns when the piece lies in its blocks."""
        start = piece_index * self._blocks_per_piece
        block_ids = self._block_ids[start : start + self._blocks_per_piece]
        if data.nbytes != self._target.bytes_of(self._rectangle, blocks=len(block_ids)):
            raise ContractViolation(f"piece {piece_index}: {data.nbytes} bytes")
        importing = self._target.import_kv(
            self._replica,
            ticket_id=self._ticket_id,
            rectangle=self._rectangle,
            block_ids=block_ids,
            data=data,
        )
        wait_for_loop(importing, self._loop)

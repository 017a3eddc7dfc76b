"""Fetches slices of weights from peers that hold them, and sends peers what they ask for.

The loading worker asks; the holder sends one transfer back to it. After a cut the loading worker
asks again, and what has arrived is not sent again. It gives up when a few attempts bring nothing,
or when nothing arrives for a while.
"""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Final

from libs.contracts.peers import SLICES_PER_FETCH_MAX, FetchWeights, PeerRefusal, WeightsSent
from libs.kernel.core import require
from libs.kernel.errors import ContractViolation
from libs.kernel.units import seconds
from libs.runtime.clock import Clock
from libs.transfer.layout import TensorSlice, missing
from libs.transfer.peer_connections import PeerConnections
from libs.transfer.ticket import TransferSummary, TransferTicket
from libs.transfer.transport import ConnectionLost, PeerSilent
from services.gpu_worker.peers.bodies import pack_slices
from services.gpu_worker.peers.inbox import Inbox
from services.gpu_worker.peers.ports import PeerOptions, WeightReader, WeightWriter
from services.gpu_worker.peers.questions import Purpose, RefusedByPeer, Refusing, ask
from services.gpu_worker.peers.transfer_sender import TransferSender

ATTEMPTS_IN_VAIN_MAX: Final = 3
"""Attempts in a row of which nothing arrives; then the fetch fails."""


class WeightFetcher:
    """The loading side."""

    def __init__(
        self,
        *,
        worker_id: str,
        connections: PeerConnections,
        inbox: Inbox,
        clock: Clock,
        options: PeerOptions,
    ) -> None:
        self._worker_id = worker_id
        self._connections = connections
        self._inbox = inbox
        self._clock = clock
        self._options = options
        self._numbers = itertools.count(1)

    async def fetch(
        self,
        *,
        source_address: str,
        own_address: str,
        replica_epoch: int,
        slices: Sequence[TensorSlice],
        store: WeightWriter,
    ) -> TransferSummary:
        """Bring these slices here; see PeerNetwork.fetch_weights."""
        require(0 < len(slices) <= SLICES_PER_FETCH_MAX, f"{len(slices)} slices in one fetch")
        piece_bytes_max = self._options.weight_piece_bytes_max
        transfer_id = f"weights/{self._worker_id}/{next(self._numbers)}"
        question = FetchWeights(
            transfer_id=transfer_id,
            replica_epoch=replica_epoch,
            peer_address=own_address,
            piece_bytes_max=piece_bytes_max,
        )
        parts = split(slices, piece_bytes_max=piece_bytes_max)
        sink = WeightSink(parts=parts, replica_epoch=replica_epoch, store=store)
        started_at_ns = self._clock.now_ns()
        self._inbox.expect(transfer_id, sink)
        try:
            sent = await self._ask_until_sent(source_address, question, slices, sink)
        finally:
            sink.is_wanted = False
            self._inbox.forget(transfer_id)
        return TransferSummary(
            bytes=sum(part.bytes for part in parts),
            duration_ns=self._clock.now_ns() - started_at_ns,
            pieces_sent=len(parts),
            pieces_resent=sent.pieces_resent,
            pieces_held=0,
        )

    async def _ask_until_sent(
        self,
        source_address: str,
        question: FetchWeights,
        slices: Sequence[TensorSlice],
        sink: "WeightSink",
    ) -> WeightsSent:
        """Ask again after a cut, unless too many attempts in a row have brought nothing."""
        attempts_in_vain = 0
        while True:
            pieces_before = sink.pieces_taken
            asking = asyncio.create_task(self._ask(source_address, question, slices))
            try:
                await self._while_arriving(asking, sink)
                return await asking
            except (ConnectionLost, RefusedByPeer) as error:
                is_in_vain = sink.pieces_taken == pieces_before
                attempts_in_vain = attempts_in_vain + 1 if is_in_vain else 0
                if not _is_cut(error) or attempts_in_vain == ATTEMPTS_IN_VAIN_MAX:
                    raise
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def _ask(
        self, source_address: str, question: FetchWeights, slices: Sequence[TensorSlice]
    ) -> WeightsSent:
        options = self._options
        async with self._connections.borrow(
            source_address, purpose=Purpose.WEIGHTS, timeout_ns=options.fetch_stall_ns
        ) as link:
            body = pack_slices(slices)
            sent, _ = await ask(link, question, WeightsSent, body=body, timeout_ns=options.fetch_ns)
        return sent

    async def _while_arriving(self, asking: asyncio.Task[WeightsSent], sink: "WeightSink") -> None:
        """Return when the question is answered. Raises: PeerSilent if nothing arrives any more."""
        while True:
            pieces_before = sink.pieces_taken
            stall = seconds(self._options.fetch_stall_ns)
            answered, _ = await asyncio.wait([asking], timeout=stall)
            if answered:
                return
            if sink.pieces_taken == pieces_before:
                raise PeerSilent("the holder of the weights sends nothing any more")


class WeightSink:
    """Hands pieces to the store; its methods run in a thread of the network."""

    def __init__(
        self, *, parts: Sequence[TensorSlice], replica_epoch: int, store: WeightWriter
    ) -> None:
        self.is_wanted = True
        self.pieces_taken = 0
        self._parts = parts
        self._replica_epoch = replica_epoch
        self._store = store

    def is_current(self, ticket: TransferTicket) -> bool:
        """See Sink."""
        return self.is_wanted and ticket.replica_epoch == self._replica_epoch

    def take(self, piece_index: int, data: memoryview) -> None:
        """See Sink."""
        if piece_index >= len(self._parts) or data.nbytes != self._parts[piece_index].bytes:
            raise ContractViolation(f"piece {piece_index} of {data.nbytes} bytes was not asked for")
        self._store.take(self._parts[piece_index], data)
        self.pieces_taken += 1


class WeightSender:
    """The holding side."""

    def __init__(self, *, worker_id: str, sender: TransferSender) -> None:
        self._worker_id = worker_id
        self._sender = sender
        self._store: WeightReader | None = None

    def serve(self, store: WeightReader | None) -> None:
        """Send from this store from now on; None: from nothing."""
        self._store = store

    async def send(
        self, question: FetchWeights, slices: Sequence[TensorSlice], *, peer_id: str
    ) -> WeightsSent:
        """Send the slices to who asks. Raises: Refusing; Unavailable if the peer is lost."""
        store = self._store
        if store is None:
            raise Refusing(PeerRefusal.NOT_HELD, self._worker_id)
        lacking = missing(slices, store.held())
        if lacking:
            raise Refusing(PeerRefusal.NOT_HELD, f"{len(lacking)} slices, of {lacking[0].tensor}")
        parts = split(slices, piece_bytes_max=question.piece_bytes_max)

        summary = await self._sender.send(
            worker_id=peer_id,
            peer_address=question.peer_address,
            ticket=TransferTicket(
                ticket_id=question.transfer_id, replica_epoch=question.replica_epoch
            ),
            sizes=[part.bytes for part in parts],
            fill=lambda index, out: store.read_into(parts[index], out),
        )
        return WeightsSent(pieces_resent=summary.pieces_resent)


def split(slices: Sequence[TensorSlice], *, piece_bytes_max: int) -> tuple[TensorSlice, ...]:
    """Cut the slices into the pieces of their transfer; both ends do it alike."""
    return tuple(part for slice_ in slices for part in slice_.split(bytes_max=piece_bytes_max))


def _is_cut(error: ConnectionLost | RefusedByPeer) -> bool:
    """Whether a link broke: this one, or the holder's to here. Silence is more than a cut."""
    if isinstance(error, RefusedByPeer):
        return error.reason is PeerRefusal.PEER_LOST
    return not isinstance(error, PeerSilent)

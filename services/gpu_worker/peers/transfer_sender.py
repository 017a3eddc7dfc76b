"""Sends one transfer over the link to a peer, and notes how fast that was."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from libs.transfer.link_rates import PEERS_MAX, LinkRates
from libs.transfer.peer_connections import PeerConnections
from libs.transfer.sending import send_transfer
from libs.transfer.ticket import (
    Fill,
    Piece,
    RefusedByReceiver,
    TransferOptions,
    TransferSummary,
    TransferTicket,
)
from services.gpu_worker.peers.ports import PeerOptions
from services.gpu_worker.peers.questions import Purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSender:
    """One transfer at a time to each peer."""

    connections: PeerConnections
    executor: Executor
    options: PeerOptions
    rates: LinkRates = field(default_factory=LinkRates)
    _measured: dict[str, None] = field(default_factory=dict)
    """Who was sent to, the latest last; as many as `rates` remembers."""

    @property
    def measured(self) -> dict[str, int]:
        """Return bytes per second by worker id, the latest measured last."""
        rates = {worker_id: self.rates.bytes_per_s(worker_id) for worker_id in self._measured}
        return {worker_id: rate for worker_id, rate in rates.items() if rate is not None}

    async def send(
        self,
        *,
        worker_id: str,
        peer_address: str,
        ticket: TransferTicket,
        sizes: Sequence[int],
        fill: Fill,
    ) -> TransferSummary:
        """Send pieces of these sizes; return when the peer has stored them all.

        A cut is not mended here: who asked for the transfer knows whether it is still wanted.
        Raises: Unavailable; ContractViolation if the peer answers nonsense.
        """
        async with self.connections.borrow(
            peer_address, purpose=Purpose.TRANSFER, timeout_ns=self.options.connect_ns
        ) as connection:
            try:
                summary = await send_transfer(
                    connection,
                    ticket=ticket,
                    pieces=[
                        Piece(piece_index=index, bytes=size) for index, size in enumerate(sizes)
                    ],
                    fill=fill,
                    executor=self.executor,
                    options=TransferOptions(stall_ns=self.options.piece_ns),
                )
            except RefusedByReceiver:
                raise
            except BaseException:
                # Half a transfer may be on the way, also if this was cancelled while it gathered.
                connection.close()
                raise
        self._note(worker_id, summary)
        return summary

    def _note(self, worker_id: str, summary: TransferSummary) -> None:
        self.rates.observe(worker_id, bytes_moved=summary.bytes, duration_ns=summary.duration_ns)
        self._measured.pop(worker_id, None)
        self._measured[worker_id] = None
        if len(self._measured) > PEERS_MAX:
            del self._measured[next(iter(self._measured))]

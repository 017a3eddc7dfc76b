"""The target's side of transfers: receive, verify, take, acknowledge; remember what is held.

    receive buffer 1 | receive buffer 2       | receive buffer 3 ...
                     | verify, take, answer 1 | verify, take, answer 2 ...

Two staging buffers per connection: while the executor takes one the next one fills. A piece is
noted in the ledger after the sink has stored it and before it is acknowledged, so that neither a
cut nor the death of the source lets a piece count that is not there.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, assert_never

import structlog
import xxhash

from libs.contracts.transfers import (
    TRANSFER_REQUESTS,
    CarryPieces,
    IntroducePeer,
    OfferTransfer,
    PiecesCorrupted,
    PiecesTaken,
    TransferAccepted,
    TransferAnswer,
    TransferRefusal,
    TransferRefused,
)
from libs.contracts.wire import encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.transfer.executing import run_in
from libs.transfer.ledger import LedgerBook, TransferLedger
from libs.transfer.packing import cut
from libs.transfer.staging import StagingPool
from libs.transfer.ticket import (
    BUFFER_BYTES_MAX,
    DEFAULT_OPTIONS,
    Sink,
    TransferOptions,
    TransferTicket,
)
from libs.transfer.transport import Connection, ConnectionLost, Message

OpenSink = Callable[[TransferTicket], Sink | None]
"""Returns where the pieces of this ticket go, or None if nobody expects them. Runs in the
executor."""

Received = Callable[[TransferTicket], None]
"""Is told once, on the loop, that all of a ticket is stored, before its source learns it."""

BUFFERS: Final = 2
"""Staging buffers of one connection: one fills while the other is taken."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class _Run:
    """One transfer while one connection carries it."""

    connection: Connection
    ledger: TransferLedger
    sink: Sink
    is_refused: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class TransferInbox:
    """Receives every transfer that is offered to one worker, over any number of connections."""

    def __init__(
        self,
        *,
        open_sink: OpenSink,
        received: Received,
        executor: Executor | None = None,
        options: TransferOptions = DEFAULT_OPTIONS,
    ) -> None:
        self.options = options
        self.staging = StagingPool()
        self._open_sink = open_sink
        self._received = received
        self._executor = executor
        self._book = LedgerBook()
        self._runs: dict[str, _Run] = {}

    async def serve(self, connection: Connection) -> None:
        """Receive what is offered on this connection, one transfer after the other, until it ends.

        Raises: ConnectionLost at its end, ContractViolation if the peer breaks the protocol.
        """
        await _Serving(self, connection).run()

    @property
    def takes_in_place(self) -> bool:
        """Whether pieces are taken on the loop itself, for lack of an executor."""
        return self._executor is None

    def forget(self, ticket_id: str) -> None:
        """Drop what is known of a ticket; offered again, it starts from nothing."""
        self._book.forget(ticket_id)

    async def begin(
        self, connection: Connection, offer: OfferTransfer, table: memoryview
    ) -> _Run | TransferRefusal:
        """Open the ledger and the sink of an offer, after the end of its earlier run."""
        ticket = TransferTicket(ticket_id=offer.ticket_id, replica_epoch=offer.replica_epoch)
        sink = await run_in(self._executor, lambda: self._current_sink(ticket))
        if isinstance(sink, TransferRefusal):
            return sink
        while (earlier := self._runs.get(ticket.ticket_id)) is not None:
            # Its source has given it up; what it still takes must be noted before we answer.
            earlier.connection.close()
            await earlier.ended.wait()
        ledger = self._book.open(ticket, bytes(table))
        if isinstance(ledger, TransferRefusal):
            return ledger
        if ledger.pieces != offer.pieces:
            raise ContractViolation(f"{ledger.pieces} pieces in a table of {offer.pieces}")
        run = _Run(connection=connection, ledger=ledger, sink=sink)
        self._runs[ticket.ticket_id] = run
        return run

    def end(self, run: _Run) -> None:
        """Note that the connection carries this transfer no longer."""
        del self._runs[run.ledger.ticket.ticket_id]
        run.ended.set()

    async def take(self, run: _Run, request: CarryPieces, body: memoryview) -> TransferAnswer:
        """Verify one buffer and store its pieces; return what to answer."""
        sizes = run.ledger.sizes_of(request.piece_indices, buffer_bytes=body.nbytes)
        if xxhash.xxh3_64_intdigest(body) != request.checksum:
            ticket_id = run.ledger.ticket.ticket_id
            _log.warning("buffer_corrupted", ticket_id=ticket_id, bytes=body.nbytes)
            return PiecesCorrupted(buffer_number=request.buffer_number)
        parts = list(zip(request.piece_indices, cut(body, sizes), strict=True))
        refusal = await run_in(self._executor, lambda: _store(run, parts))
        if refusal is not None:
            run.is_refused = True
            return TransferRefused(reason=refusal)
        if run.ledger.mark_taken(request.piece_indices):
            self._received(run.ledger.ticket)
        return PiecesTaken(buffer_number=request.buffer_number)

    def _current_sink(self, ticket: TransferTicket) -> Sink | TransferRefusal:
        sink = self._open_sink(ticket)
        if sink is None:
            return TransferRefusal.UNKNOWN_TICKET
        return sink if sink.is_current(ticket) else TransferRefusal.STALE_EPOCH


class _Serving:
    """One connection of an inbox."""

    def __init__(self, inbox: TransferInbox, connection: Connection) -> None:
        self._inbox = inbox
        self._connection = connection
        self._run: _Run | None = None
        self._taking: asyncio.Task[None] | None = None
        self._pieces_being_taken = 0
        self._buffers: list[bytearray] = []

    async def run(self) -> None:
        try:
            while True:
                await self._serve_message(await self._receive())
        except ConnectionLost:
            # If taking failed, that is why the connection ended.
            await self._finish_taking()
            raise
        finally:
            if self._taking is not None:
                await asyncio.gather(self._taking, return_exceptions=True)
            self._end_run()

    async def _receive(self) -> Message:
        if self._run is not None and self._pieces_being_taken >= self._run.ledger.pieces_missing:
            # Nothing may follow: whether the transfer is over must be known before we wait.
            await self._finish_taking()
        return await self._connection.receive(
            timeout_ns=None if self._run is None else self._inbox.options.idle_ns,
            allocate=self._allocate,
        )

    async def _serve_message(self, message: Message) -> None:
        request = TRANSFER_REQUESTS.decode(message.header)
        await self._finish_taking()
        match request:
            case IntroducePeer(peer_id=peer_id, purpose=purpose):
                _log.info("peer_connected", peer_id=peer_id, purpose=purpose)
            case OfferTransfer():
                await self._begin_run(request, message.body)
            case CarryPieces():
                if self._run is None:
                    # Under way when its transfer was refused: each buffer gets its answer.
                    await self._answer(TransferRefused(reason=TransferRefusal.UNKNOWN_TICKET))
                    return
                taking = self._take(self._run, request, message.body)
                if self._inbox.takes_in_place:
                    # Nothing runs beside it; to receive first would only spoil the cache.
                    await taking
                    self._end_run_if_over()
                    return
                self._pieces_being_taken = len(request.piece_indices)
                self._taking = asyncio.create_task(taking)
            case _:
                assert_never(request)

    async def _begin_run(self, offer: OfferTransfer, table: memoryview) -> None:
        if self._run is not None:
            raise ContractViolation("an offer in the middle of a transfer")
        begun = await self._inbox.begin(self._connection, offer, table)
        if isinstance(begun, TransferRefusal):
            _log.info("transfer_refused", ticket_id=offer.ticket_id, reason=begun)
            await self._answer(TransferRefused(reason=begun))
            return
        self._run = begun
        await self._answer(TransferAccepted(ticket_id=offer.ticket_id), begun.ledger.held())
        self._end_run_if_over()

    def _end_run(self) -> None:
        if self._run is not None:
            self._inbox.end(self._run)
        self._run = None
        buffers, self._buffers = self._buffers, []
        if not self._connection.is_closed:
            for buffer in buffers:
                self._inbox.staging.give_back(buffer)

    async def _take(self, run: _Run, request: CarryPieces, body: memoryview) -> None:
        try:
            await self._answer(await self._inbox.take(run, request, body))
        except BaseException:
            # The receiving half must not wait for what will never be answered.
            self._connection.close()
            raise

    async def _finish_taking(self) -> None:
        if self._taking is not None:
            taking, self._taking = self._taking, None
            await taking
            self._pieces_being_taken = 0
        self._end_run_if_over()

    def _end_run_if_over(self) -> None:
        if self._run is not None and (self._run.is_refused or self._run.ledger.is_complete):
            self._end_run()

    async def _answer(self, answer: TransferAnswer, body: bytes = b"") -> None:
        await self._connection.send(encode(answer), [body], timeout_ns=self._inbox.options.stall_ns)

    def _allocate(self, header: bytes, size: int) -> memoryview:
        """Give a buffer that is not being taken: the last one if it is free, for it is in cache."""
        if size > BUFFER_BYTES_MAX:
            raise ContractViolation(f"a buffer of {size} bytes, over {BUFFER_BYTES_MAX}")
        if self._run is None:
            return memoryview(bytearray(size))
        is_last_free = self._taking is None or self._taking.done()
        if not self._buffers or (len(self._buffers) < BUFFERS and not is_last_free):
            self._buffers.append(self._inbox.staging.borrow(size))
        elif not is_last_free:
            self._buffers.reverse()
        if len(self._buffers[-1]) < size:
            self._inbox.staging.give_back(self._buffers[-1])
            self._buffers[-1] = self._inbox.staging.borrow(size)
        return memoryview(self._buffers[-1])[:size]


def _store(run: _Run, parts: list[tuple[int, memoryview]]) -> TransferRefusal | None:
    """Hand the pieces to the sink, all in one turn of the executor, unless they are stale."""
    if not run.sink.is_current(run.ledger.ticket):
        return TransferRefusal.STALE_EPOCH
    try:
        for piece_index, data in parts:
            run.sink.take(piece_index, data)
    except Unavailable as error:
        _log.warning("sink_unavailable", ticket_id=run.ledger.ticket.ticket_id, error=str(error))
        return TransferRefusal.SINK_UNAVAILABLE
    return None

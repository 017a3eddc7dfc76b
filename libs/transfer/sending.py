"""The source's side of a transfer: gather, check, send, and wait for what was taken.

    lane 1   fill | send | .......... taken | fill | send | ...
    lane 2          fill | send | .......... taken | fill | ...
    lane 3                 fill | send | ...

Each lane takes the next batch of pieces when its last one is taken, so that the lanes bound memory,
back-pressure and what a cut can cost in one number. Answers come in the order of the buffers.

With an executor each lane gathers into a staging buffer of its own, beside what the others send.
Without one nothing runs beside a send: the lanes take turns with one buffer, which is free as soon
as it is sent and stays in the cache.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

import xxhash

from libs.contracts.transfers import (
    TRANSFER_ANSWERS,
    CarryPieces,
    OfferTransfer,
    PiecesCorrupted,
    PiecesTaken,
    TransferAccepted,
    TransferAnswer,
    TransferRefused,
)
from libs.contracts.wire import encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.transfer.executing import run_in
from libs.transfer.packing import Batch, pack
from libs.transfer.staging import StagingPool
from libs.transfer.ticket import (
    DEFAULT_OPTIONS,
    Fill,
    Piece,
    RefusedByReceiver,
    TransferCorrupted,
    TransferOptions,
    TransferSummary,
    TransferTicket,
    pack_pieces,
)
from libs.transfer.transport import Connection


async def send_transfer(
    connection: Connection,
    *,
    ticket: TransferTicket,
    pieces: Sequence[Piece],
    fill: Fill,
    executor: Executor | None = None,
    staging: StagingPool | None = None,
    options: TransferOptions = DEFAULT_OPTIONS,
) -> TransferSummary:
    """Send the pieces that the receiver lacks; return when it has verified and stored them all.

    `fill` runs in the executor (see `run_in`), once per piece and again for pieces that arrived
    corrupted; the source of a piece must not change until then. The connection must be used for
    nothing else meanwhile; it stays open unless it is lost. Buffers come from `staging`, which is
    best shared by all transfers of a process.

    After ConnectionLost the same ticket and pieces on another connection continue the transfer.
    Raises: ConnectionLost, PeerSilent; RefusedByReceiver, TransferCorrupted; ContractViolation if
    the receiver answers nonsense.
    """
    started_at_ns = time.monotonic_ns()
    held = await _offer(connection, ticket=ticket, pieces=pieces, options=options)
    wanted = [piece for piece, is_held in zip(pieces, held, strict=True) if not is_held]
    run = _Run(connection, ticket=ticket, fill=fill, executor=executor, options=options)
    await run.send(pack(wanted, options), staging or StagingPool())
    return TransferSummary(
        bytes=sum(piece.bytes for piece in wanted),
        duration_ns=time.monotonic_ns() - started_at_ns,
        pieces_sent=len(wanted),
        pieces_resent=run.pieces_resent,
        pieces_held=len(pieces) - len(wanted),
    )


async def _offer(
    connection: Connection,
    *,
    ticket: TransferTicket,
    pieces: Sequence[Piece],
    options: TransferOptions,
) -> bytes:
    """Return one byte per piece: 1 if the receiver holds it."""
    offer = OfferTransfer(
        ticket_id=ticket.ticket_id, replica_epoch=ticket.replica_epoch, pieces=len(pieces)
    )
    table = pack_pieces(pieces)
    await connection.send(encode(offer), [table], timeout_ns=options.stall_ns)
    message = await connection.receive(timeout_ns=options.stall_ns)
    match TRANSFER_ANSWERS.decode(message.header):
        case TransferAccepted() if message.body.nbytes == len(pieces):
            return bytes(message.body)
        case TransferRefused(reason=reason):
            raise RefusedByReceiver(reason, ticket_id=ticket.ticket_id)
        case answer:
            connection.close()
            raise ContractViolation(f"{type(answer).__name__} in answer to an offer")


class _Run:
    """One run of a transfer over one connection."""

    def __init__(
        self,
        connection: Connection,
        *,
        ticket: TransferTicket,
        fill: Fill,
        executor: Executor | None,
        options: TransferOptions,
    ) -> None:
        self.pieces_resent = 0
        self._connection = connection
        self._ticket = ticket
        self._fill = fill
        self._executor = executor
        self._options = options
        self._sending = asyncio.Lock()
        self._buffers_sent = 0
        self._unanswered: asyncio.Queue[asyncio.Future[TransferAnswer]] = asyncio.Queue()
        self._failure: Exception | None = None

    async def send(self, batches: Sequence[Batch], staging: StagingPool) -> None:
        """Deliver every batch, or raise what went wrong first."""
        remaining = iter(batches)
        largest_bytes = max((batch.bytes for batch in batches), default=0)
        lanes_wanted = min(self._options.buffers_in_flight, len(batches))
        buffers_wanted = min(lanes_wanted, 1) if self._executor is None else lanes_wanted
        buffers = [staging.borrow(largest_bytes) for _ in range(buffers_wanted)]
        lanes = [
            asyncio.create_task(self._lane(remaining, memoryview(buffers[lane % buffers_wanted])))
            for lane in range(lanes_wanted)
        ]
        hearing = asyncio.create_task(self._hear())
        try:
            await asyncio.gather(*lanes)
        except BaseException:
            self._connection.close()
            raise
        finally:
            for task in (*lanes, hearing):
                task.cancel()
            await asyncio.gather(*lanes, hearing, return_exceptions=True)
        for buffer in buffers:
            staging.give_back(buffer)
        if self._failure is not None:
            raise self._failure

    async def _lane(self, remaining: Iterator[Batch], staging: memoryview) -> None:
        """Deliver one batch after the other until there is none, or some lane has failed."""
        for batch in remaining:
            try:
                await self._deliver(batch, staging[: batch.bytes])
            except (Unavailable, ContractViolation) as error:
                self._failure = self._failure or error
                if not isinstance(error, RefusedByReceiver):
                    # The receiver still waits for pieces; a refusal it has sent itself.
                    self._connection.close()
            if self._failure is not None:
                return

    async def _deliver(self, batch: Batch, buffer: memoryview) -> None:
        for _ in range(self._options.corruptions_max + 1):
            if self._executor is not None:
                await run_in(self._executor, lambda: self._gather(batch, buffer))
            async with self._sending:
                if self._executor is None:
                    # Not before its turn: all lanes gather into this buffer.
                    self._gather(batch, buffer)
                answer = await self._send_buffer(batch, buffer)
            match await answer:
                case PiecesTaken():
                    return
                case PiecesCorrupted():
                    self.pieces_resent += len(batch.pieces)
                case TransferRefused(reason=reason):
                    raise RefusedByReceiver(reason, ticket_id=self._ticket.ticket_id)
                case TransferAccepted():
                    raise ContractViolation("an offer's answer in answer to a buffer")
        raise TransferCorrupted(ticket_id=self._ticket.ticket_id)

    def _gather(self, batch: Batch, buffer: memoryview) -> None:
        start = 0
        for piece in batch.pieces:
            self._fill(piece.piece_index, buffer[start : start + piece.bytes])
            start += piece.bytes

    async def _send_buffer(
        self, batch: Batch, buffer: memoryview
    ) -> asyncio.Future[TransferAnswer]:
        """Send and return the answer to come; answers come in the order of these calls."""
        request = CarryPieces(
            buffer_number=self._buffers_sent,
            checksum=xxhash.xxh3_64_intdigest(buffer),
            piece_indices=tuple(piece.piece_index for piece in batch.pieces),
        )
        self._buffers_sent += 1
        await self._connection.send(encode(request), [buffer], timeout_ns=self._options.stall_ns)
        answer: asyncio.Future[TransferAnswer] = asyncio.get_running_loop().create_future()
        self._unanswered.put_nowait(answer)
        return answer

    async def _hear(self) -> None:
        """Receive one answer for each buffer sent; none is pending when nothing is unanswered."""
        while True:
            answer = await self._unanswered.get()
            try:
                message = await self._connection.receive(timeout_ns=self._options.stall_ns)
                heard = TRANSFER_ANSWERS.decode(message.header)
            except (Unavailable, ContractViolation) as error:
                answer.set_exception(error)
            else:
                answer.set_result(heard)

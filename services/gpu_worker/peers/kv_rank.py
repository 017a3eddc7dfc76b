"""What one rank of a source does in a copy of KV: it sends its rectangles of a batch of blocks."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from libs.contracts.peers import KvAwaited, KvSent, RankRoute, SendKv, StoreKv
from libs.transfer.ticket import TransferTicket
from services.gpu_worker.peers.bodies import pack_integers
from services.gpu_worker.peers.kv_plan import BlockPair, KvGeometry, Rectangle, pieces_of
from services.gpu_worker.peers.loop_thread import wait_for_loop
from services.gpu_worker.peers.ports import EngineAccess
from services.gpu_worker.peers.questions import Purpose, ask
from services.gpu_worker.peers.transfer_sender import TransferSender


class StoreHere(Protocol):
    """Stores KV in a position of this very worker."""

    async def __call__(
        self,
        *,
        replica_id: str,
        replica_epoch: int,
        ticket_id: str,
        rectangle: Rectangle,
        block_ids: Sequence[int],
        data: memoryview,
    ) -> None:
        """Raises: Unavailable if the copy has ended."""


class KvRankSender:
    """Sends this worker's part of batches of blocks."""

    def __init__(
        self,
        *,
        worker_id: str,
        engine: EngineAccess,
        geometry: KvGeometry,
        sender: TransferSender,
        store_here: StoreHere,
    ) -> None:
        self._worker_id = worker_id
        self._engine = engine
        self._geometry = geometry
        self._sender = sender
        self._store_here = store_here

    async def send(self, question: SendKv, blocks: Sequence[BlockPair]) -> KvSent:
        """Send every route of the question; all targets have stored it when this returns.

        Raises: Unavailable if one has not.
        """
        sendings = [
            asyncio.create_task(self._send_route(question, index, blocks))
            for index in range(len(question.routes))
        ]
        try:
            sizes = await asyncio.gather(*sendings)
        finally:
            # One that failed makes the batch worthless; nothing of it goes on unwatched.
            for sending in sendings:
                sending.cancel()
            await asyncio.gather(*sendings, return_exceptions=True)
        here = [route.worker_id == self._worker_id for route in question.routes]
        return KvSent(
            bytes_moved=sum(size for size, is_here in zip(sizes, here, strict=True) if not is_here),
            bytes_copied_here=sum(
                size for size, is_here in zip(sizes, here, strict=True) if is_here
            ),
        )

    async def _send_route(
        self, question: SendKv, route_index: int, blocks: Sequence[BlockPair]
    ) -> int:
        """Return the bytes of the route."""
        route = question.routes[route_index]
        rectangle = Rectangle(
            layers=range(route.layer_start, route.layer_stop),
            heads=range(route.head_start, route.head_stop),
        )
        pieces = pieces_of(
            len(blocks),
            block_bytes=self._bytes_of(rectangle, 1),
            piece_bytes_max=self._sender.options.piece_bytes_max,
        )
        if route.worker_id == self._worker_id:
            for piece in pieces:
                await self._copy_here(question, rectangle, [blocks[i] for i in piece])
        else:
            await self._send_away(question, route_index, rectangle, blocks, pieces)
        return self._bytes_of(rectangle, len(blocks))

    async def _copy_here(
        self, question: SendKv, rectangle: Rectangle, blocks: Sequence[BlockPair]
    ) -> None:
        data = memoryview(bytearray(self._bytes_of(rectangle, len(blocks))))
        await self._export(question, rectangle, [source for source, _ in blocks], data)
        await self._store_here(
            replica_id=question.target_replica_id,
            replica_epoch=question.target_replica_epoch,
            ticket_id=question.ticket_id,
            rectangle=rectangle,
            block_ids=[target for _, target in blocks],
            data=data,
        )

    async def _send_away(
        self,
        question: SendKv,
        route_index: int,
        rectangle: Rectangle,
        blocks: Sequence[BlockPair],
        pieces: Sequence[range],
    ) -> None:
        route = question.routes[route_index]
        transfer_id = f"{question.ticket_id}/{question.batch}.{question.source_rank}.{route_index}"
        await self._announce(question, route, transfer_id, [target for _, target in blocks], pieces)
        piece_bytes = [self._bytes_of(rectangle, len(piece)) for piece in pieces]
        loop = asyncio.get_running_loop()

        def gather(piece_index: int, out: memoryview) -> None:
            sources = [blocks[i][0] for i in pieces[piece_index]]
            wait_for_loop(self._export(question, rectangle, sources, out), loop)

        await self._sender.send(
            worker_id=route.worker_id,
            peer_address=route.peer_address,
            ticket=TransferTicket(
                ticket_id=transfer_id, replica_epoch=question.target_replica_epoch
            ),
            sizes=piece_bytes,
            fill=gather,
        )

    async def _announce(
        self,
        question: SendKv,
        route: RankRoute,
        transfer_id: str,
        target_blocks: Sequence[int],
        pieces: Sequence[range],
    ) -> None:
        announcement = StoreKv(
            replica_id=question.target_replica_id,
            replica_epoch=question.target_replica_epoch,
            ticket_id=question.ticket_id,
            transfer_id=transfer_id,
            blocks_per_piece=len(pieces[0]),
            layer_start=route.layer_start,
            layer_stop=route.layer_stop,
            head_start=route.head_start,
            head_stop=route.head_stop,
        )
        async with self._sender.connections.borrow(
            route.peer_address, purpose=Purpose.STORE, timeout_ns=self._sender.options.connect_ns
        ) as link:
            await ask(
                link,
                announcement,
                KvAwaited,
                body=pack_integers(target_blocks),
                timeout_ns=self._sender.options.answer_ns,
            )

    async def _export(
        self, question: SendKv, rectangle: Rectangle, block_ids: Sequence[int], out: memoryview
    ) -> None:
        await self._engine.export_kv(
            replica_id=question.source_replica_id,
            layers=rectangle.layers,
            heads=rectangle.heads,
            block_ids=block_ids,
            out=out,
        )

    def _bytes_of(self, rectangle: Rectangle, blocks: int) -> int:
        return rectangle.cells * blocks * self._geometry.cell_bytes

"""What the transfer benchmark moves: KV blocks that lie scattered in a pool, as an engine's do."""

from dataclasses import dataclass
from typing import Final

import msgpack
import numpy as np
import numpy.typing as npt

from libs.kernel.rng import Rng
from libs.kernel.units import KIB, MIB
from libs.transfer.ticket import Piece, TransferTicket
from services.gpu_worker.peers.ports import PeerOptions

BLOCK_BYTES: Final = 32 * KIB
"""Keys of 16 tokens in one layer: 8 heads of 128 in 16 bits."""
POOL_BYTES: Final = 128 * MIB
"""Twice the largest transfer, and more than a cache holds."""
KV_PIECE_BYTES: Final = PeerOptions().piece_bytes_max
"""What a worker gathers at one step boundary, and so sends as one piece: many blocks."""
REFERENCE_DONE: Final = b"done"


class BlockPool:
    """Blocks in memory; the n-th block of a transfer lies somewhere in it."""

    def __init__(self) -> None:
        blocks = POOL_BYTES // BLOCK_BYTES
        order = list(range(blocks))
        Rng(0).child("order of blocks").shuffle(order)
        self._place_of = order
        self._blocks: npt.NDArray[np.uint8] = np.zeros((blocks, BLOCK_BYTES), np.uint8)
        self._blocks[:] = np.arange(blocks, dtype=np.uint8)[:, None]  # Touched: really there.

    def plain(self, size: int) -> memoryview:
        """Return the first bytes of the pool as they lie."""
        return self._blocks.reshape(-1).data[:size]

    def gather(self, first_block: int, target: memoryview) -> None:
        """Copy as many blocks out as fit, one after the other."""
        for number in range(len(target) // BLOCK_BYTES):
            block = self._blocks[self._place_of[first_block + number]]
            target[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES] = block.data

    def scatter(self, first_block: int, source: memoryview) -> None:
        """Copy as many blocks in as there are, one after the other."""
        for number in range(len(source) // BLOCK_BYTES):
            block = self._blocks[self._place_of[first_block + number]]
            block.data[:] = source[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecesOfBlocks:
    """A pool as a transfer in pieces of one size sees it, at either end."""

    pool: BlockPool
    piece_bytes: int

    def listed(self, size: int) -> list[Piece]:
        """Return the pieces of a transfer of this size."""
        starts = range(0, size, self.piece_bytes)
        return [
            Piece(piece_index=number, bytes=min(self.piece_bytes, size - start))
            for number, start in enumerate(starts)
        ]

    def fill(self, piece_index: int, target: memoryview) -> None:
        """Copy the blocks of one piece out, as Fill does."""
        self.pool.gather(self._first_block(piece_index), target)

    def take(self, piece_index: int, data: memoryview) -> None:
        """Copy the blocks of one piece in, as a Sink does."""
        self.pool.scatter(self._first_block(piece_index), data)

    def is_current(self, ticket: TransferTicket) -> bool:
        """Every ticket is, here."""
        return ticket.replica_epoch == 0

    def _first_block(self, piece_index: int) -> int:
        return piece_index * self.piece_bytes // BLOCK_BYTES


def pieces_of_ticket(pool: BlockPool, ticket_id: str) -> PiecesOfBlocks:
    """Return how a transfer is cut, whose ticket begins with the bytes of its pieces."""
    return PiecesOfBlocks(pool=pool, piece_bytes=int(ticket_id.split("/")[0]))


def pack_reference(checksum: int, first_block: int) -> bytes:
    """Return the header of one buffer of the reference loop."""
    packed: bytes = msgpack.packb((checksum, first_block))
    return packed


def unpack_reference(header: bytes) -> tuple[int, int]:
    """Read such a header."""
    checksum, first_block = msgpack.unpackb(header)
    return checksum, first_block

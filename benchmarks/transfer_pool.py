"""What the transfer benchmark moves: KV blocks that lie scattered in a pool, as an engine's do."""

from collections.abc import Sequence
from typing import Final

import msgpack
import numpy as np
import numpy.typing as npt

from libs.kernel.rng import Rng
from libs.kernel.units import KIB, MIB
from libs.transfer.ticket import Piece, TransferTicket

PIECE_BYTES: Final = 32 * KIB
"""Keys of 16 tokens in one layer: 8 heads of 128 in 16 bits."""
POOL_BYTES: Final = 128 * MIB
"""Twice the largest transfer, and more than a cache holds."""
REFERENCE_DONE: Final = b"done"


class BlockPool:
    """Blocks in memory; the n-th piece of a transfer is a block somewhere in it."""

    def __init__(self) -> None:
        blocks = POOL_BYTES // PIECE_BYTES
        order = list(range(blocks))
        Rng(0).child("order of blocks").shuffle(order)
        self._block_of = order
        self._blocks: npt.NDArray[np.uint8] = np.zeros((blocks, PIECE_BYTES), np.uint8)
        self._blocks[:] = np.arange(blocks, dtype=np.uint8)[:, None]  # Touched: really there.

    def fill(self, piece_index: int, target: memoryview) -> None:
        """Copy one block out, as Fill does."""
        target[:] = self._blocks[self._block_of[piece_index]].data

    def take(self, piece_index: int, data: memoryview) -> None:
        """Copy one block in, as a Sink does."""
        self._blocks[self._block_of[piece_index]].data[:] = data

    def is_current(self, ticket: TransferTicket) -> bool:
        """Every ticket is, here."""
        return ticket.replica_epoch == 0

    def plain(self, size: int) -> memoryview:
        """Return the first bytes of the pool as they lie."""
        return self._blocks.reshape(-1).data[:size]

    def gather(self, piece_indices: Sequence[int], target: memoryview) -> None:
        """Copy blocks out, one after the other."""
        for number, piece_index in enumerate(piece_indices):
            self.fill(piece_index, target[number * PIECE_BYTES : (number + 1) * PIECE_BYTES])

    def scatter(self, piece_indices: Sequence[int], source: memoryview) -> None:
        """Copy blocks in, one after the other."""
        for number, piece_index in enumerate(piece_indices):
            self.take(piece_index, source[number * PIECE_BYTES : (number + 1) * PIECE_BYTES])


def pieces_of(size: int) -> list[Piece]:
    """Return the pieces of a transfer of this size."""
    return [Piece(piece_index=number, bytes=PIECE_BYTES) for number in range(size // PIECE_BYTES)]


def pack_reference(checksum: int, piece_indices: Sequence[int]) -> bytes:
    """Return the header of one buffer of the reference loop."""
    packed: bytes = msgpack.packb((checksum, piece_indices))
    return packed


def unpack_reference(header: bytes) -> tuple[int, list[int]]:
    """Read such a header."""
    checksum, piece_indices = msgpack.unpackb(header)
    return checksum, piece_indices

"""Packs pieces into buffers: few and large, since each message costs both ends a fixed time."""

from collections.abc import Sequence

from libs.contracts.transfers import PIECES_PER_BUFFER_MAX
from libs.kernel.core import require
from libs.transfer.ticket import PIECE_BYTES_MAX, Piece, TransferOptions

Batch = tuple[Piece, ...]


def pack(pieces: Sequence[Piece], options: TransferOptions) -> list[Batch]:
    """Split the pieces, in their order, into batches of one buffer each.

    No batch is under `buffer_bytes_min`, except where the whole is, or where the number of pieces
    bounds a buffer. One is over `buffer_bytes_max` only by what the minimum needs.
    Raises: InvariantViolation for a piece that no buffer may carry.
    """
    batches: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        require(0 < piece.bytes <= PIECE_BYTES_MAX, f"a piece of {piece.bytes} bytes")
        is_full = size >= options.buffer_bytes_min and (
            size + piece.bytes > options.buffer_bytes_max
        )
        if not batches or is_full or len(batches[-1]) == PIECES_PER_BUFFER_MAX:
            batches.append([])
            size = 0
        batches[-1].append(piece)
        size += piece.bytes
    if len(batches) > 1 and size < options.buffer_bytes_min:
        last = batches.pop()
        if len(batches[-1]) + len(last) <= PIECES_PER_BUFFER_MAX:
            batches[-1] += last
        else:
            batches.append(last)
    return [tuple(batch) for batch in batches]


def bytes_of(batch: Batch) -> int:
    """Return the length of a batch's buffer."""
    return sum(piece.bytes for piece in batch)


def cut(buffer: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """Return the parts of a buffer, in order, that have these sizes."""
    parts = []
    start = 0
    for size in sizes:
        parts.append(buffer[start : start + size])
        start += size
    return parts

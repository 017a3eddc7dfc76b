"""Packs pieces into buffers: few and large, since each message costs both ends a fixed time."""

from collections.abc import Sequence
from dataclasses import dataclass

from libs.contracts.transfers import PIECES_PER_BUFFER_MAX
from libs.kernel.core import require
from libs.transfer.ticket import PIECE_BYTES_MAX, Piece, TransferOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The pieces of one buffer, in order, and how long it is."""

    pieces: tuple[Piece, ...]
    bytes: int


def pack(pieces: Sequence[Piece], options: TransferOptions) -> list[Batch]:
    """Split the pieces, in their order, into batches of one buffer each.

    No batch is under `buffer_bytes_min`, except where the whole is, or where the number of pieces
    bounds a buffer. One is over `buffer_bytes_max` only by what the minimum needs.
    Raises: InvariantViolation for a piece that no buffer may carry.
    """
    wrong = [piece for piece in pieces if not 0 < piece.bytes <= PIECE_BYTES_MAX]
    require(not wrong, f"pieces that no buffer may carry: {wrong[:3]}")
    lists: list[list[Piece]] = []
    sizes: list[int] = []
    for piece in pieces:
        is_full = bool(lists) and (
            len(lists[-1]) == PIECES_PER_BUFFER_MAX
            or (
                sizes[-1] >= options.buffer_bytes_min
                and sizes[-1] + piece.bytes > options.buffer_bytes_max
            )
        )
        if is_full or not lists:
            lists.append([])
            sizes.append(0)
        lists[-1].append(piece)
        sizes[-1] += piece.bytes
    if len(lists) > 1 and sizes[-1] < options.buffer_bytes_min:
        _join_last(lists, sizes)
    return [
        Batch(pieces=tuple(listed), bytes=size) for listed, size in zip(lists, sizes, strict=True)
    ]


def cut(buffer: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """Return the parts of a buffer, in order, that have these sizes."""
    parts = []
    start = 0
    for size in sizes:
        parts.append(buffer[start : start + size])
        start += size
    return parts


def _join_last(lists: list[list[Piece]], sizes: list[int]) -> None:
    """Add the small rest to the buffer before it, unless that holds too many pieces already."""
    if len(lists[-2]) + len(lists[-1]) <= PIECES_PER_BUFFER_MAX:
        rest, rest_bytes = lists.pop(), sizes.pop()
        lists[-1] += rest
        sizes[-1] += rest_bytes

"""Pieces in few, large buffers."""

import pytest

from libs.contracts.transfers import PIECES_PER_BUFFER_MAX
from libs.kernel.errors import InvariantViolation
from libs.transfer.packing import cut, pack
from libs.transfer.ticket import PIECE_BYTES_MAX, Piece, TransferOptions

OPTIONS = TransferOptions(buffer_bytes_min=100, buffer_bytes_max=200)


def packed(*sizes: int) -> list[int]:
    pieces = [Piece(piece_index=n, bytes=size) for n, size in enumerate(sizes)]
    batches = pack(pieces, OPTIONS)
    assert [piece for batch in batches for piece in batch.pieces] == pieces
    return [batch.bytes for batch in batches]


def test_small_pieces_share_a_buffer_up_to_its_size() -> None:
    assert packed(*[50] * 8) == [200, 200]


def test_a_buffer_below_the_minimum_takes_even_a_large_piece() -> None:
    assert packed(99, 500, 100) == [599, 100]


def test_a_small_rest_joins_the_last_buffer() -> None:
    assert packed(200, 200, 30) == [200, 230]


def test_a_whole_below_the_minimum_is_one_small_buffer() -> None:
    assert packed(10, 20) == [30]
    assert packed() == []


def test_the_number_of_pieces_bounds_a_buffer() -> None:
    tiny = TransferOptions()
    pieces = [Piece(piece_index=n, bytes=1) for n in range(PIECES_PER_BUFFER_MAX + 5)]
    assert [len(batch.pieces) for batch in pack(pieces, tiny)] == [PIECES_PER_BUFFER_MAX, 5]


@pytest.mark.parametrize("size", [0, PIECE_BYTES_MAX + 1])
def test_a_piece_that_no_buffer_may_carry_is_a_bug(size: int) -> None:
    with pytest.raises(InvariantViolation):
        packed(size)


def test_a_buffer_is_cut_where_its_pieces_meet() -> None:
    assert cut(memoryview(b"abcdef"), [1, 2, 3]) == [b"a", b"bc", b"def"]

"""However large the pieces: all are packed, in order, into buffers of bounded size."""

from hypothesis import given
from hypothesis import strategies as st

from libs.contracts.transfers import PIECES_PER_BUFFER_MAX
from libs.transfer.ledger import LedgerBook, TransferLedger
from libs.transfer.packing import pack
from libs.transfer.ticket import Piece, TransferOptions, TransferTicket, pack_pieces

MIN, MAX = 100, 200
OPTIONS = TransferOptions(buffer_bytes_min=MIN, buffer_bytes_max=MAX)
sizes = st.lists(st.integers(1, 3 * MAX), max_size=60)


def pieces_of(sizes: list[int]) -> list[Piece]:
    return [Piece(piece_index=number, bytes=size) for number, size in enumerate(sizes)]


@given(sizes=sizes)
def test_buffers_hold_every_piece_in_order_and_keep_their_bounds(sizes: list[int]) -> None:
    pieces = pieces_of(sizes)
    batches = pack(pieces, OPTIONS)
    assert [piece for batch in batches for piece in batch.pieces] == pieces
    lengths = [batch.bytes for batch in batches]
    assert lengths == [sum(piece.bytes for piece in batch.pieces) for batch in batches]
    assert all(length >= MIN for length in lengths) or len(lengths) <= 1
    assert all(length <= max(MAX, MIN + 3 * MAX) + MIN for length in lengths)
    assert all(0 < len(batch.pieces) <= PIECES_PER_BUFFER_MAX for batch in batches)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=20), data=st.data())
def test_through_any_cuts_and_epochs_each_piece_is_sent_until_it_is_held(
    sizes: list[int], data: st.DataObject
) -> None:
    """The source sends what `held` lacks; a cut loses a part of it; at last all is there once."""
    book, pieces, epoch = LedgerBook(), pieces_of(sizes), 0
    sent_of_epoch: list[int] = []
    for _ in range(data.draw(st.integers(0, 6), label="cuts")):
        if data.draw(st.booleans(), label="new epoch"):
            epoch += 1
            sent_of_epoch = []
        ledger = _opened(book, pieces, epoch)
        missing = [piece.piece_index for piece in pieces if not ledger.held()[piece.piece_index]]
        arrived = missing[: data.draw(st.integers(0, len(missing)), label="arrived")]
        completes = ledger.mark_taken(arrived)
        sent_of_epoch += arrived
        assert completes == (bool(arrived) and len(arrived) == len(missing))
        assert len(set(sent_of_epoch)) == len(sent_of_epoch), "a held piece was sent again"
        book.check_invariants()
    ledger = _opened(book, pieces, epoch)
    assert ledger.held() == bytes(piece.piece_index in sent_of_epoch for piece in pieces)


def _opened(book: LedgerBook, pieces: list[Piece], epoch: int) -> TransferLedger:
    ledger = book.open(TransferTicket(ticket_id="t", replica_epoch=epoch), pack_pieces(pieces))
    assert isinstance(ledger, TransferLedger)
    return ledger

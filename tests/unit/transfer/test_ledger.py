"""A ledger knows what has arrived; the book knows whose ledger it is."""

import pytest

from libs.contracts.transfers import TransferRefusal
from libs.kernel.errors import ContractViolation
from libs.transfer.ledger import LedgerBook, TransferLedger
from libs.transfer.ticket import (
    PIECE_BYTES_MAX,
    Piece,
    TransferTicket,
    pack_pieces,
    unpack_sizes,
)


def a_ticket(ticket_id: str = "t", *, epoch: int = 1) -> TransferTicket:
    return TransferTicket(ticket_id=ticket_id, replica_epoch=epoch)


def pieces_of(*sizes: int) -> tuple[Piece, ...]:
    return tuple(Piece(piece_index=10 + n, bytes=size) for n, size in enumerate(sizes))


def a_table(*sizes: int) -> bytes:
    return pack_pieces(pieces_of(*sizes))


def a_ledger(*sizes: int) -> TransferLedger:
    return TransferLedger(ticket=a_ticket(), table=a_table(*sizes))


def opened(book: LedgerBook, ticket: TransferTicket, *sizes: int) -> TransferLedger:
    ledger = book.open(ticket, a_table(*sizes))
    assert isinstance(ledger, TransferLedger)
    book.check_invariants()
    return ledger


def test_completion_is_told_once() -> None:
    ledger = a_ledger(5, 6, 7)
    assert not ledger.mark_taken([12])
    assert ledger.held() == b"\0\0\1"
    assert ledger.pieces_missing == 2
    assert ledger.mark_taken([10, 11])
    assert ledger.is_complete
    assert not ledger.mark_taken([10])
    ledger.check_invariants()


def test_a_transfer_without_pieces_is_complete() -> None:
    assert a_ledger().is_complete


@pytest.mark.parametrize(
    ("indices", "buffer_bytes"), [((13,), 5), ((10, 10), 10), ((10, 11), 10), ((10,), 4)]
)
def test_a_buffer_of_other_pieces_is_refused(indices: tuple[int, ...], buffer_bytes: int) -> None:
    with pytest.raises(ContractViolation):
        a_ledger(5, 6).sizes_of(indices, buffer_bytes=buffer_bytes)


def test_a_buffer_holds_pieces_in_the_order_it_names_them() -> None:
    assert a_ledger(5, 6, 7).sizes_of([12, 10], buffer_bytes=12) == [7, 5]


def test_the_same_offer_continues_its_ledger() -> None:
    book = LedgerBook()
    opened(book, a_ticket(), 5, 6).mark_taken([10])
    assert opened(book, a_ticket(), 5, 6).held() == b"\1\0"


def test_a_newer_epoch_starts_from_nothing_and_an_older_one_is_refused() -> None:
    book = LedgerBook()
    opened(book, a_ticket(epoch=1), 5, 6).mark_taken([10])
    assert opened(book, a_ticket(epoch=2), 5, 6).held() == b"\0\0"
    assert book.open(a_ticket(epoch=1), a_table(5, 6)) is TransferRefusal.STALE_EPOCH


def test_other_pieces_under_the_same_ticket_are_refused() -> None:
    book = LedgerBook()
    opened(book, a_ticket(), 5, 6)
    assert book.open(a_ticket(), a_table(5, 7)) is TransferRefusal.PIECES_DIFFER


def test_the_oldest_transfer_is_forgotten_past_the_bound() -> None:
    book = LedgerBook(pieces_max=4)
    for name in ("a", "b"):
        opened(book, a_ticket(name), 5, 6).mark_taken([10])
    opened(book, a_ticket("c"), 5)
    assert opened(book, a_ticket("b"), 5, 6).held() == b"\1\0"
    assert opened(book, a_ticket("a"), 5, 6).held() == b"\0\0"
    book.forget("a")
    book.forget("a")
    book.check_invariants()


def test_one_transfer_past_the_bound_is_still_kept() -> None:
    book = LedgerBook(pieces_max=1)
    opened(book, a_ticket(), 5, 6).mark_taken([10])
    assert opened(book, a_ticket(), 5, 6).held() == b"\1\0"


def test_a_table_of_pieces_survives_the_wire() -> None:
    pieces = (*pieces_of(1, PIECE_BYTES_MAX), Piece(piece_index=2**32 - 1, bytes=7))
    sizes = [(piece.piece_index, piece.bytes) for piece in pieces]
    assert list(unpack_sizes(pack_pieces(pieces)).items()) == sizes
    assert unpack_sizes(b"") == {}


@pytest.mark.parametrize(
    "table",
    [
        pack_pieces(pieces_of(5))[:-1],
        pack_pieces(pieces_of(0)),
        pack_pieces(pieces_of(PIECE_BYTES_MAX + 1)),
        pack_pieces(pieces_of(5)) * 2,
    ],
    ids=["cut off", "empty piece", "too large", "twice"],
)
def test_a_dishonest_table_is_refused(table: bytes) -> None:
    with pytest.raises(ContractViolation):
        unpack_sizes(table)

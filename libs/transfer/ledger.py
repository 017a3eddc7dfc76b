"""What has arrived of each transfer, kept by its receiver: a cut costs only what was on the way.

A ledger is keyed by its ticket and belongs to one epoch: the same ticket under a newer epoch starts
again, for the blocks behind the pieces may have changed hands; under an older one it is refused.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from libs.contracts.transfers import TransferRefusal
from libs.kernel.core import require
from libs.kernel.errors import ContractViolation
from libs.transfer.ticket import TransferTicket, unpack_sizes

BOOK_PIECES_MAX: Final = 1 << 20
"""Past it the oldest transfer is forgotten, and would start again from nothing if it came back."""


class TransferLedger:
    """The pieces of one transfer and which of them are taken.

    Raises: ContractViolation for a table that is none.
    """

    def __init__(self, *, ticket: TransferTicket, table: bytes) -> None:
        self.ticket = ticket
        self.table = table
        self._bytes_of = unpack_sizes(table)
        self._taken: set[int] = set()

    @property
    def pieces(self) -> int:
        """How many there are."""
        return len(self._bytes_of)

    @property
    def is_complete(self) -> bool:
        """Whether every piece is taken."""
        return len(self._taken) == len(self._bytes_of)

    @property
    def pieces_missing(self) -> int:
        """How many are not taken yet."""
        return len(self._bytes_of) - len(self._taken)

    def held(self) -> bytes:
        """Return one byte per piece, in the order of the offer: 1 if it is taken."""
        if not self._taken:
            return bytes(self.pieces)
        return bytes(piece_index in self._taken for piece_index in self._bytes_of)

    def sizes_of(self, piece_indices: Sequence[int], *, buffer_bytes: int) -> list[int]:
        """Return the sizes of pieces that together fill one buffer.

        Raises: ContractViolation if one is not of this transfer or comes twice in the buffer, or if
        they do not fill it.
        """
        if len(set(piece_indices)) < len(piece_indices):
            raise ContractViolation("a piece comes twice in one buffer")
        try:
            sizes = [self._bytes_of[index] for index in piece_indices]
        except KeyError as error:
            raise ContractViolation(f"piece {error} was never offered") from error
        if sum(sizes) != buffer_bytes:
            raise ContractViolation(f"{sum(sizes)} bytes of pieces in {buffer_bytes}")
        return sizes

    def mark_taken(self, piece_indices: Sequence[int]) -> bool:
        """Note that these are stored; return whether that completed the transfer just now."""
        was_complete = self.is_complete
        self._taken.update(piece_indices)
        return self.is_complete and not was_complete

    def check_invariants(self) -> None:
        """Raise InvariantViolation if something was taken that was never offered."""
        require(self._taken <= self._bytes_of.keys(), "a piece was taken that was never offered")


class LedgerBook:
    """The ledgers of one receiver, bounded by the pieces they list together."""

    def __init__(self, *, pieces_max: int = BOOK_PIECES_MAX) -> None:
        self._pieces_max = pieces_max
        self._pieces = 0
        self._ledgers: OrderedDict[str, TransferLedger] = OrderedDict()

    def open(self, ticket: TransferTicket, table: bytes) -> TransferLedger | TransferRefusal:
        """Return the ledger that continues this ticket or begins it, or why there is none.

        Raises: ContractViolation for a table that is none.
        """
        known = self._ledgers.get(ticket.ticket_id)
        if known is None or known.ticket.replica_epoch < ticket.replica_epoch:
            return self._begin(TransferLedger(ticket=ticket, table=table))
        if known.ticket.replica_epoch > ticket.replica_epoch:
            return TransferRefusal.STALE_EPOCH
        if known.table != table:
            return TransferRefusal.PIECES_DIFFER
        return known

    def forget(self, ticket_id: str) -> None:
        """Drop a ledger; the ticket, offered again, starts from nothing."""
        ledger = self._ledgers.pop(ticket_id, None)
        if ledger is not None:
            self._pieces -= ledger.pieces

    def check_invariants(self) -> None:
        """Raise InvariantViolation if the count of pieces went astray or a ledger contradicts."""
        counted = sum(ledger.pieces for ledger in self._ledgers.values())
        require(counted == self._pieces, f"{counted} pieces, not {self._pieces}")
        for ledger in self._ledgers.values():
            ledger.check_invariants()

    def _begin(self, ledger: TransferLedger) -> TransferLedger:
        self.forget(ledger.ticket.ticket_id)
        self._ledgers[ledger.ticket.ticket_id] = ledger
        self._pieces += ledger.pieces
        while self._pieces > self._pieces_max and len(self._ledgers) > 1:
            self.forget(next(iter(self._ledgers)))
        return ledger

"""The words of a transfer: its ticket, its pieces, and what the two ends must supply."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from libs.contracts.transfers import TransferRefusal
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import MIB, NS_PER_MS, NS_PER_S

PIECE_BYTES_MAX: Final = 32 * MIB
"""A larger piece must be split (`TensorSlice.split`); staging memory grows with the largest."""
BUFFER_BYTES_MAX: Final = 2 * PIECE_BYTES_MAX
"""A receiver refuses a longer body, however a sender packs."""
RETRY_AFTER_NS: Final = 100 * NS_PER_MS
_PIECE: Final = struct.Struct(">IQ")

Fill = Callable[[int, memoryview], None]
"""Gathers the piece of this index into the memory given, which is exactly as long as the piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferTicket:
    """Names one transfer. Sent again after a cut it continues; what has arrived is not repeated.

    `replica_epoch` is the fence: a sink refuses a ticket of an epoch that is not current.
    """

    ticket_id: str
    replica_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part that arrives as a whole or not at all; both ends know what its index stands for."""

    piece_index: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOptions:
    """How a transfer uses memory and time.

    The source holds at most `buffers_in_flight` staging buffers, the target two; either holds one
    where it has no executor. Each is of at most `buffer_bytes_max + buffer_bytes_min` or, where
    pieces are large, one piece more than the minimum.
    """

    buffer_bytes_min: int = 1 * MIB
    """Pieces are packed into buffers no smaller than this, unless the whole transfer is."""
    buffer_bytes_max: int = 4 * MIB
    """A buffer grows past this only to reach the minimum. Larger ones leave the cache between the
    gathering, the checksum and the kernel; smaller ones cost more in messages."""
    buffers_in_flight: int = 3
    """At the source: one is gathered, one sent, one taken. More only spoil the cache."""
    corruptions_max: int = 3
    """Times that one buffer may arrive corrupted before the transfer fails."""
    stall_ns: int = 5 * NS_PER_S
    """Longest wait of the source for the target to take or acknowledge one buffer."""
    idle_ns: int = 60 * NS_PER_S
    """Longest wait of the target for the next buffer of a transfer."""


DEFAULT_OPTIONS: Final = TransferOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSummary:
    """What one run of a transfer did: after a cut, the run that completed it."""

    bytes: int
    """Sent and verified in this run."""
    duration_ns: int
    pieces_sent: int
    pieces_resent: int
    """Sent again because they arrived corrupted."""
    pieces_held: int
    """Not sent: the receiver had them from an earlier run."""


class RefusedByReceiver(Unavailable):
    """The receiver wants no more of this transfer; repeating it as it is would not help."""

    def __init__(self, reason: TransferRefusal, *, ticket_id: str) -> None:
        super().__init__(f"transfer {ticket_id}: {reason}", retry_after_ns=RETRY_AFTER_NS)
        self.reason = reason


class TransferCorrupted(Unavailable):
    """The same pieces arrived with a wrong checksum again and again."""

    def __init__(self, *, ticket_id: str) -> None:
        super().__init__(f"transfer {ticket_id}: corrupted", retry_after_ns=RETRY_AFTER_NS)


class Sink(Protocol):
    """Where the pieces of one transfer go. Its methods run in the receiver's executor."""

    def is_current(self, ticket: TransferTicket) -> bool:
        """Whether the ticket's epoch is still that of this sink; asked again before each buffer,
        in the same turn of the executor that takes it."""

    def take(self, piece_index: int, data: memoryview) -> None:
        """Store a verified piece; `data` is only lent. After a cut the same piece may come twice.

        Raises: Unavailable if there is no room for it; the transfer is then refused.
        """


def pack_pieces(pieces: Sequence[Piece]) -> bytes:
    """Return the table of pieces as it is offered."""
    return b"".join(_PIECE.pack(piece.piece_index, piece.bytes) for piece in pieces)


def unpack_sizes(table: bytes) -> dict[int, int]:
    """Read a table as the bytes of each piece index, in its order; made for tables of thousands.

    Raises: ContractViolation if it is none that an honest peer would offer.
    """
    if len(table) % _PIECE.size:
        raise ContractViolation("a table of pieces ends in half a piece")
    sizes = dict(_PIECE.iter_unpack(table))
    if len(sizes) * _PIECE.size < len(table):
        raise ContractViolation("a piece is offered twice")
    if sizes and not 0 < min(sizes.values()) <= max(sizes.values()) <= PIECE_BYTES_MAX:
        raise ContractViolation(f"a piece is empty or over {PIECE_BYTES_MAX} bytes")
    return sizes

"""The words of a transfer: its ticket, its pieces, and what the two ends must supply."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from libs.kernel.errors import Unavailable
from libs.kernel.units import MIB, NS_PER_MS, NS_PER_S

Fill = Callable[[int, memoryview], None]
"""Gathers the piece of this index into the memory given, exactly as long as the piece."""


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


class Refusal(StrEnum):
    """Why a receiver takes no more of a transfer."""

    UNKNOWN_TICKET = "unknown_ticket"
    """Nobody there expects it, or does so no longer."""
    STALE_EPOCH = "stale_epoch"
    """The sink's epoch has moved on; the sender's view is out of date."""
    PIECES_DIFFER = "pieces_differ"
    """The ticket was offered before with other pieces."""
    CORRUPT = "corrupt"
    """A buffer arrived with a wrong checksum too often."""
    SINK_UNAVAILABLE = "sink_unavailable"
    """The sink had no room, or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOptions:
    """How a transfer uses memory and time.

    Either end holds at most `buffers_in_flight` staging buffers, each of at most
    `buffer_bytes_max` plus one piece.
    """

    buffer_bytes_min: int = 1 * MIB
    """Pieces are packed into buffers no smaller than this, unless the whole transfer is."""
    buffer_bytes_max: int = 2 * MIB
    """A buffer grows past this only to reach the minimum."""
    buffers_in_flight: int = 4
    """One is gathered, one sent, one received, one taken."""
    corruptions_max: int = 3
    """Times that one buffer may arrive corrupted before the transfer fails."""
    stall_ns: int = 5 * NS_PER_S
    """Longest wait for the peer to take or acknowledge one buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSummary:
    """What one run of a transfer did: after a cut, of the run that completed it."""

    bytes: int
    """Sent and verified in this run."""
    duration_ns: int
    pieces_sent: int
    pieces_resent: int
    """Sent again because they arrived corrupted."""
    pieces_held: int
    """Not sent: the receiver had them from an earlier run."""


class TransferRefused(Unavailable):
    """The receiver wants no more of this transfer; repeating it as it is would not help."""

    def __init__(self, reason: Refusal, *, ticket_id: str) -> None:
        super().__init__(f"transfer {ticket_id}: {reason}", retry_after_ns=100 * NS_PER_MS)
        self.reason = reason


class Sink(Protocol):
    """Where the pieces of one transfer go. Its methods run in the receiver's executor."""

    def is_current(self, ticket: TransferTicket) -> bool:
        """Whether the ticket's epoch is still that of this sink; asked again before each buffer."""
        ...

    def take(self, piece_index: int, data: memoryview) -> None:
        """Store a verified piece; `data` is only lent. After a cut the same piece may come twice.

        Raises: Unavailable if there is no room for it; the transfer is then refused.
        """
        ...

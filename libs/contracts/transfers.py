"""What two workers say to each other on a transfer connection, as the headers of its messages.

    connecting side                 accepting side
    IntroducePeer
    OfferTransfer + sizes    --->
                             <---   TransferAccepted + what is held | TransferRefused
    CarryPieces + pieces     --->                       (several under way at once)
                             <---   PiecesTaken | PiecesCorrupted | TransferRefused, in order

Nothing of it is ever lost alone: a connection delivers in order or ends. After its end the same
offer on a new connection goes on with the pieces that are missing.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from libs.contracts.wire import Codec, Message, SubjectToken

TicketId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
"""Names one transfer; chosen by who plans it."""

PIECES_MAX = 1 << 18
"""Pieces of one transfer; a larger one is several tickets."""
PIECES_PER_BUFFER_MAX = 4096
"""Pieces that one buffer carries, so that its header stays small."""


class TransferRefusal(StrEnum):
    """Why a receiver takes no more of a transfer."""

    UNKNOWN_TICKET = "unknown_ticket"
    STALE_EPOCH = "stale_epoch"
    PIECES_DIFFER = "pieces_differ"
    SINK_UNAVAILABLE = "sink_unavailable"


class IntroducePeer(Message):
    """Who connects, and for what.

    Sent by the connecting worker, first on every connection. Handled by the accepting worker, which
    logs it and serves what follows.
    """

    type: Literal["introduce_peer.v1"] = "introduce_peer.v1"
    peer_id: SubjectToken
    purpose: SubjectToken


class OfferTransfer(Message):
    """Asks which pieces are still wanted; the body is the table of pieces.

    Sent by the source of a transfer. Handled by its target, which answers TransferAccepted or
    TransferRefused. Repeating it on a new connection ends the earlier run and continues the
    transfer; under a newer replica epoch it starts again from nothing.
    """

    type: Literal["offer_transfer.v1"] = "offer_transfer.v1"
    ticket_id: TicketId
    replica_epoch: int = Field(ge=0)
    pieces: int = Field(ge=0, le=PIECES_MAX, description="rows of the table in the body")


class CarryPieces(Message):
    """Carries whole pieces one after the other in the body.

    Sent by the source, only for pieces that its target does not hold. Handled by the target, which
    answers PiecesTaken, PiecesCorrupted or TransferRefused, in the order of these messages.
    """

    type: Literal["carry_pieces.v1"] = "carry_pieces.v1"
    buffer_number: int = Field(ge=0, description="counts the messages of this run from 0")
    checksum: int = Field(ge=0, lt=2**64, description="XXH3 of 64 bits over the body")
    piece_indices: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(
        min_length=1, max_length=PIECES_PER_BUFFER_MAX
    )


class TransferAccepted(Message):
    """The offer is taken; the body has one byte per piece of the table, 1 if it is held already.

    Sent by the target. Handled by the source, which sends the other pieces.
    """

    type: Literal["transfer_accepted.v1"] = "transfer_accepted.v1"
    ticket_id: TicketId


class TransferRefused(Message):
    """Nothing more of this transfer is taken; what is under way is dropped.

    Sent by the target in the place of any other answer. Handled by the source, which gives up.
    """

    type: Literal["transfer_refused.v1"] = "transfer_refused.v1"
    reason: TransferRefusal


class PiecesTaken(Message):
    """The pieces of this buffer were verified and stored.

    Sent by the target. Handled by the source, which may use the buffer again.
    """

    type: Literal["pieces_taken.v1"] = "pieces_taken.v1"
    buffer_number: int = Field(ge=0)


class PiecesCorrupted(Message):
    """The body did not match its checksum; none of it was stored.

    Sent by the target. Handled by the source, which gathers and sends these pieces again.
    """

    type: Literal["pieces_corrupted.v1"] = "pieces_corrupted.v1"
    buffer_number: int = Field(ge=0)


TransferRequest = IntroducePeer | OfferTransfer | CarryPieces
TransferAnswer = TransferAccepted | TransferRefused | PiecesTaken | PiecesCorrupted

TRANSFER_REQUESTS: Codec[TransferRequest] = Codec(
    Annotated[TransferRequest, Field(discriminator="type")]
)
TRANSFER_ANSWERS: Codec[TransferAnswer] = Codec(
    Annotated[TransferAnswer, Field(discriminator="type")]
)

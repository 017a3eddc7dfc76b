"""The port to the network: connections that carry messages of a small header and a large body.

What every transport guarantees, held by one suite over all of them:
- messages of one connection arrive whole and in order, or not at all;
- `send` awaits while the peer is slow; nothing queues up on this side;
- no call hangs: a peer that is dead raises ConnectionLost at once, one that is silent (frozen, cut
  off) raises PeerSilent when the caller's time limit has passed;
- a connection on which any call failed, timed out or was cancelled midway is closed, so that half a
  message is never taken for a whole one;
- who does not open with this protocol and version is refused before anything of it is read.

One task sends and one task receives at a time; both may run at once.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import KIB, MIB, NS_PER_MS, NS_PER_S

HEADER_BYTES_MAX: Final = 64 * KIB
"""A longer header is refused on both sides; bulk belongs into the body."""
BODY_BYTES_MAX: Final = 1024 * MIB
"""A longer body is refused on both sides, before anything is allocated for it."""
SEGMENTS_MAX: Final = 4096
"""Buffers in one body; more are refused by the sender."""
CONNECTIONS_MAX: Final = 1024
"""Connections open at one listener; one more is closed at once."""
HANDSHAKE_NS: Final = 5 * NS_PER_S
"""An accepted connection that has not introduced itself by then is closed."""
RETRY_AFTER_NS: Final = 100 * NS_PER_MS

Buffer = bytes | bytearray | memoryview
"""What a body is made of; an array gives `memoryview(array)`. Must be contiguous."""

Allocate = Callable[[bytes, int], memoryview]
"""Given a header and its body's length in bytes, where the body shall be received."""


class ConnectionLost(Unavailable):
    """The connection is closed: by either side, by the death of the peer, or by the network."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_ns=RETRY_AFTER_NS)


class PeerSilent(ConnectionLost):
    """The peer did not answer within the time limit; the connection has been closed."""


class PeerUnreachable(Unavailable):
    """No connection could be made: nobody listens there, or not within the time limit."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_ns=RETRY_AFTER_NS)


class ProtocolMismatch(ContractViolation):
    """The peer speaks another protocol or version, or broke the framing; the connection has been
    closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as received. The body lies where `allocate` put it, else in fresh memory."""

    header: bytes
    body: memoryview


class Connection(Protocol):
    """A link to one peer."""

    @property
    def peer_address(self) -> str:
        """Where the peer is, for logs."""

    @property
    def is_closed(self) -> bool:
        """Whether either side has closed it, as far as this side knows."""

    async def send(self, header: bytes, body: Sequence[Buffer], *, timeout_ns: int) -> None:
        """Hand one message to the transport; afterwards the buffers may be used again.

        Returning says nothing about the peer: only an answer does. `timeout_ns` bounds the whole
        call. Raises: ConnectionLost, PeerSilent; ContractViolation for a message over the bounds,
        which leaves the connection as it was.
        """

    async def receive(
        self, *, timeout_ns: int | None = None, allocate: Allocate | None = None
    ) -> Message:
        """Await the next message; without a time limit for as long as the peer keeps quiet.

        Raises: ConnectionLost, PeerSilent, ProtocolMismatch.
        """

    def close(self) -> None:
        """Close at once; calls that wait raise ConnectionLost. Repeating it is safe."""


OnConnection = Callable[[Connection], Awaitable[None]]
"""Serves one accepted connection, which is closed when it returns."""


class Listener(Protocol):
    """Accepts connections until it is closed."""

    @property
    def address(self) -> str:
        """What a peer connects to, with the port that was really bound."""

    async def close(self) -> None:
        """Stop accepting, and cancel and close what was accepted. Repeating it is safe."""


class Transport(Protocol):
    """Makes connections of one kind."""

    async def listen(self, on_connection: OnConnection) -> Listener:
        """Serve every connection that comes in with a task of its own.

        Unavailable and ContractViolation out of `on_connection` end that connection alone.
        Raises: Unavailable if the address cannot be bound.
        """

    async def connect(self, address: str, *, timeout_ns: int) -> Connection:
        """Connect and shake hands. Raises: PeerUnreachable, ProtocolMismatch."""

    async def close(self) -> None:
        """Close every listener and connection it made. Repeating it is safe."""

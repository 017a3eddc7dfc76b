"""Messages over plain TCP, on asyncio's non-blocking sockets.

Between processes of one machine this moves buffers of megabytes as fast as blocking sockets in
threads do, so there are no threads here. The kernel's socket buffers are the only queue.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from secrets import token_bytes
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import KIB, seconds
from libs.transfer.framing import (
    GREETING_BYTES,
    LENGTHS_BYTES,
    NO_NONCE,
    NONCE_BYTES,
    allocated,
    body_bytes,
    check_greeting,
    checked_segments,
    pack_greeting,
    pack_lengths,
    unpack_lengths,
)
from libs.transfer.guarded_connection import GuardedConnection
from libs.transfer.peer_secret import PROOF_BYTES, PeerSecret, Role
from libs.transfer.transport import (
    CONNECTIONS_MAX,
    HANDSHAKE_NS,
    RETRY_AFTER_NS,
    Allocate,
    Buffer,
    Connection,
    Listener,
    Message,
    OnConnection,
    PeerUnreachable,
    ProtocolMismatch,
)

READ_AHEAD_BYTES: Final = 16 * KIB
"""Read with a header if it has come, so that a small message costs one call to the kernel."""
SENDMSG_SEGMENTS_MAX: Final = 64
"""Buffers handed to the kernel in one call; it takes no more than 1024."""
BACKLOG: Final = 128
KEEPALIVE_IDLE_S: Final = 10
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_PROBES: Final = 3
"""A host that vanished ends an idle connection after 25 s; a call in progress has its own limit."""

_log = structlog.get_logger(__name__)


class TcpConnection(GuardedConnection):
    """One socket after the greetings."""

    def __init__(self, sock: socket.socket, *, peer_address: str) -> None:
        super().__init__(peer_address=peer_address, broken_by=(OSError, EOFError))
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._ahead_memory = memoryview(bytearray(READ_AHEAD_BYTES))
        self._ahead = self._ahead_memory[:0]

    async def send(self, header: bytes, body: Sequence[Buffer], *, timeout_ns: int) -> None:
        """See Connection: returns when the kernel has taken everything."""
        segments = checked_segments(header, body)
        start = pack_lengths(header, body_bytes(segments)) + header
        async with self._call("send", timeout_ns=timeout_ns):
            await self._send_all([memoryview(start), *segments])

    async def receive(
        self, *, timeout_ns: int | None = None, allocate: Allocate | None = None
    ) -> Message:
        """See Connection."""
        async with self._call("receive", timeout_ns=timeout_ns):
            lengths = await self._read_bytes(LENGTHS_BYTES)
            header_bytes, size = unpack_lengths(lengths)
            header = await self._read_bytes(header_bytes)
            body = allocated(header, size, allocate)
            await self._read_into(body)
            return Message(header=header, body=body)

    def _interrupt(self) -> None:
        # The error is that the peer was first: nothing is connected any more.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _release(self) -> None:
        self._sock.close()

    async def _send_all(self, segments: list[memoryview]) -> None:
        try:
            # All in one call, so that the peer does not wake up for a header alone.
            sent = self._sock.sendmsg(segments[:SENDMSG_SEGMENTS_MAX])
        except BlockingIOError:
            sent = 0
        for segment in segments:
            if sent < segment.nbytes:
                await self._loop.sock_sendall(self._sock, segment[sent:])
            sent = max(0, sent - segment.nbytes)

    async def _read_bytes(self, count: int) -> bytes:
        target = bytearray(count)
        await self._read_into(memoryview(target))
        return bytes(target)

    async def _read_into(self, target: memoryview) -> None:
        """Fill the target, first with what was read ahead."""
        while target.nbytes:
            if not self._ahead and target.nbytes < READ_AHEAD_BYTES:
                await self._read_ahead()
            if self._ahead:
                count = min(target.nbytes, self._ahead.nbytes)
                target[:count] = self._ahead[:count]
                target, self._ahead = target[count:], self._ahead[count:]
            else:
                await _read_into(self._loop, self._sock, target)
                return

    async def _read_ahead(self) -> None:
        """Read what has come: with one call a small message, or a header and its body's start."""
        count = await self._loop.sock_recv_into(self._sock, self._ahead_memory)
        if not count:
            raise EOFError("closed by the peer")
        self._ahead = self._ahead_memory[:count]


class TcpListener:
    """Accepts, greets, and runs one task per connection."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        kind: str,
        secret: PeerSecret | None,
        on_connection: OnConnection,
    ) -> None:
        self._sock = sock
        self._kind = kind
        self._secret = secret
        self._on_connection = on_connection
        self._closing: dict[asyncio.Task[Any], Callable[[], None]] = {}
        self._accepting = asyncio.create_task(self._accept())
        self.address = address_of(kind, sock.getsockname())

    async def close(self) -> None:
        """See Listener."""
        tasks = [self._accepting, *self._closing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, name = await loop.sock_accept(self._sock)
            except OSError as error:
                # Out of file descriptors, or the peer was gone before we looked.
                _log.warning("accept_failed", address=self.address, error=str(error))
                await asyncio.sleep(seconds(RETRY_AFTER_NS))
                continue
            if len(self._closing) >= CONNECTIONS_MAX:
                _log.warning("connection_refused", reason="too many", address=self.address)
                sock.close()
                continue
            task = asyncio.create_task(self._serve(sock, address_of(self._kind, name)))
            self._closing[task] = sock.close
            task.add_done_callback(self._end)

    async def _serve(self, sock: socket.socket, peer_address: str) -> None:
        try:
            async with asyncio.timeout(seconds(HANDSHAKE_NS)):
                await _shake_hands(sock, Role.LISTENS, kind=self._kind, secret=self._secret)
        except (OSError, EOFError, ContractViolation) as error:
            _log.warning("connection_refused", reason=str(error), peer=peer_address)
            return
        connection = TcpConnection(sock, peer_address=peer_address)
        task = asyncio.current_task()
        assert task is not None
        self._closing[task] = connection.close
        try:
            await self._on_connection(connection)
        except (Unavailable, ContractViolation) as error:
            _log.info("connection_ended", reason=str(error), peer=peer_address)

    def _end(self, task: asyncio.Task[Any]) -> None:
        # Not in the task: one that is cancelled before its first step has no `finally`.
        self._closing.pop(task)()


class TcpTransport:
    """Listens on `host`, at `port` or at any free one, and connects to `tcp://host:port`.

    With a secret it talks to nobody who does not prove to hold the same.
    """

    def __init__(
        self, *, host: str, port: int = 0, kind: str = "tcp", secret: PeerSecret | None = None
    ) -> None:
        self._host = host
        self._port = port
        self._kind = kind
        self._secret = secret
        self._listeners: list[TcpListener] = []
        self._connections: set[TcpConnection] = set()

    async def listen(self, on_connection: OnConnection) -> Listener:
        """See Transport."""
        try:
            sock = socket.create_server((self._host, self._port), backlog=BACKLOG)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {self._host}:{self._port}: {error}",
                retry_after_ns=RETRY_AFTER_NS,
            ) from error
        sock.setblocking(False)
        listener = TcpListener(
            sock, kind=self._kind, secret=self._secret, on_connection=on_connection
        )
        self._listeners.append(listener)
        return listener

    async def connect(self, address: str, *, timeout_ns: int) -> Connection:
        """See Transport."""
        host, port = host_and_port(address, kind=self._kind)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(seconds(timeout_ns)):
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
                await _shake_hands(sock, Role.CONNECTS, kind=self._kind, secret=self._secret)
        except (OSError, EOFError) as error:
            sock.close()
            reason = str(error) or type(error).__name__
            raise PeerUnreachable(f"{address}: {reason}") from error
        except (asyncio.CancelledError, ContractViolation):
            sock.close()
            raise
        connection = TcpConnection(sock, peer_address=address)
        self._connections = {known for known in self._connections if not known.is_closed}
        self._connections.add(connection)
        return connection

    async def close(self) -> None:
        """See Transport."""
        for listener in self._listeners:
            await listener.close()
        for connection in self._connections:
            connection.close()


def address_of(kind: str, name: tuple[str, int]) -> str:
    """Write a socket's name as an address."""
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{kind}://{host}:{name[1]}"


def host_and_port(address: str, *, kind: str) -> tuple[str, int]:
    """Read an address. Raises: PeerUnreachable if it is none of this kind."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise PeerUnreachable(f"{address}: {error}") from error
    if parts.scheme != kind or not host or not port:
        raise PeerUnreachable(f"{address}: not an address such as {kind}://127.0.0.1:4711")
    return host, port


async def _shake_hands(
    sock: socket.socket, role: Role, *, kind: str, secret: PeerSecret | None
) -> None:
    """Exchange greetings, and proofs if there is a secret; both sides send theirs first.

    Raises: ProtocolMismatch.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    own = pack_greeting(kind, nonce=NO_NONCE if secret is None else token_bytes(NONCE_BYTES))
    theirs = await _exchange(sock, own, GREETING_BYTES)
    check_greeting(theirs, kind=kind, has_secret=secret is not None)
    if secret is None:
        return
    proof = secret.proof(role, own_greeting=own, peer_greeting=theirs)
    peer_proof = await _exchange(sock, proof, PROOF_BYTES)
    if not secret.is_proven(peer_proof, role.other, own_greeting=own, peer_greeting=theirs):
        raise ProtocolMismatch("the peer holds another secret")


async def _exchange(sock: socket.socket, own: bytes, count: int) -> bytes:
    """Send these bytes, and return as many of the peer's as told."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, own)
    theirs = bytearray(count)
    await _read_into(loop, sock, memoryview(theirs))
    return bytes(theirs)


async def _read_into(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, target: memoryview
) -> None:
    """Fill the target. Raises: EOFError if the peer closes before that."""
    while target.nbytes:
        count = await loop.sock_recv_into(sock, target)
        if not count:
            raise EOFError("closed by the peer")
        target = target[count:]

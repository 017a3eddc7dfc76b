"""Messages whose bodies travel over UCX: RDMA, NVLink or shared memory where the machine has them.

    TCP    greeting, then both workers' UCX addresses and tags; headers, small bodies, the end
    UCX    large bodies, tag-matched into the memory that the receiver allocated

The headers stay on TCP because it binds to the host it was told, refuses strangers before UCX sees
them, notices the death of a peer at once, and carries a small message in a tenth of the time. A
body is received only after its header announced it, so nothing polls while a connection is idle.

UCX is a singleton of the process: one context serves every UcxTransport and ends with the last of
them. It runs on its own thread (`progress_mode="thread"`), the only mode that costs an idle process
nothing; Python futures wake the loop, which otherwise would poll while it waits.
"""

import asyncio
import itertools
import struct
from collections.abc import Sequence
from typing import Any, Final

import ucxx
from ucxx.exceptions import UCXError
from ucxx.types import Tag

from libs.kernel.core import require
from libs.kernel.units import KIB, NS_PER_MS, seconds
from libs.transfer.framing import allocated, body_bytes, checked_segments
from libs.transfer.guarded_connection import GuardedConnection
from libs.transfer.peer_secret import PeerSecret
from libs.transfer.tcp import TcpTransport
from libs.transfer.transport import (
    BODY_BYTES_MAX,
    HANDSHAKE_NS,
    Allocate,
    Buffer,
    Connection,
    ConnectionLost,
    Listener,
    Message,
    OnConnection,
    PeerUnreachable,
    ProtocolMismatch,
)

INLINE_BYTES_MAX: Final = 64 * KIB
"""A body up to this goes by TCP with its header: on UCX its latency is all one would see."""
CLOSE_NS: Final = 100 * NS_PER_MS
"""Longest wait of the loop for UCX's thread when an endpoint is closed."""
LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_TAG: Final = struct.Struct(">Q")
_SEGMENT: Final = struct.Struct(">Q")
_INLINE: Final = b"\0"
_BULK: Final = b"\1"
"""The first byte of what TCP carries as a body: the body itself follows, or its segments' sizes."""


class UcxContext:
    """The process's one UCX worker, held while at least one transport uses it."""

    _users = 0
    _tags = itertools.count(1)

    @classmethod
    def acquire(cls, *, host: str) -> None:
        """Start UCX for the first user, on loopback alone if that is where it listens."""
        if cls._users == 0:
            options = {"NET_DEVICES": "lo"} if host in LOOPBACK_HOSTS else {}
            ucxx.init(options, progress_mode="thread", enable_python_future=True)
        cls._users += 1

    @classmethod
    def release(cls) -> None:
        """End UCX with its last user: its notifier thread would keep the process from exiting."""
        require(cls._users > 0, "UCX released more often than acquired")
        cls._users -= 1
        if cls._users == 0:
            ucxx.reset()

    @classmethod
    def new_tag(cls) -> int:
        """Return a tag that no other connection of this process receives by."""
        return next(cls._tags)

    @staticmethod
    def address() -> bytes:
        """Return where UCX endpoints reach this process."""
        return bytes(ucxx.get_worker_address())

    @staticmethod
    async def endpoint(address: bytes) -> Any:
        """Make an endpoint to another process's worker."""
        peer = ucxx.get_ucx_address_from_buffer(address)
        return await ucxx.create_endpoint_from_worker_address(peer)


class UcxConnection(GuardedConnection):
    """A TCP connection for headers and a UCX endpoint for bodies."""

    def __init__(
        self, control: Connection, *, endpoint: Any, send_tag: int, receive_tag: int
    ) -> None:
        super().__init__(peer_address=control.peer_address, broken_by=(UCXError, ConnectionLost))
        self._control = control
        self._endpoint = endpoint
        self._send_tag = Tag(send_tag)
        self._receive_tag = Tag(receive_tag)

    @property
    def is_closed(self) -> bool:
        """Whether either side has closed it, as far as this side knows."""
        return super().is_closed or self._control.is_closed

    async def send(self, header: bytes, body: Sequence[Buffer], *, timeout_ns: int) -> None:
        """See Connection: returns when UCX needs the buffers no more."""
        segments = checked_segments(header, body)
        async with self._call("send", timeout_ns=timeout_ns):
            if body_bytes(segments) <= INLINE_BYTES_MAX:
                inline = b"".join((_INLINE, *segments))
                await self._control.send(header, [inline], timeout_ns=timeout_ns)
                return
            sizes = b"".join(_SEGMENT.pack(segment.nbytes) for segment in segments)
            await self._control.send(header, [_BULK, sizes], timeout_ns=timeout_ns)
            for segment in segments:
                await self._endpoint.send(segment, tag=self._send_tag, force_tag=True)
                # A send that was cancelled returns as if it had succeeded.
                if self._is_closed or self._endpoint.closed:
                    raise ConnectionLost("the connection is closed")

    async def receive(
        self, *, timeout_ns: int | None = None, allocate: Allocate | None = None
    ) -> Message:
        """See Connection."""
        async with self._call("receive", timeout_ns=timeout_ns):
            announced = await self._control.receive()
            kind, rest = bytes(announced.body[:1]), announced.body[1:]
            if kind == _INLINE:
                body = allocated(announced.header, rest.nbytes, allocate)
                body[:] = rest
                return Message(header=announced.header, body=body)
            if kind != _BULK or rest.nbytes % _SEGMENT.size:
                raise ProtocolMismatch("neither a body nor the sizes of one")
            sizes = [size for (size,) in _SEGMENT.iter_unpack(rest)]
            if sum(sizes) > BODY_BYTES_MAX:
                raise ProtocolMismatch(f"a body of {sum(sizes)} bytes, over {BODY_BYTES_MAX}")
            body = allocated(announced.header, sum(sizes), allocate)
            await self._receive_segments(body, sizes)
            return Message(header=announced.header, body=body)

    async def _receive_segments(self, body: memoryview, sizes: Sequence[int]) -> None:
        start = 0
        for size in sizes:
            segment = body[start : start + size]
            await self._endpoint.recv(segment, tag=self._receive_tag, force_tag=True)
            start += size

    def _interrupt(self) -> None:
        self._control.close()
        self._endpoint.abort(period=CLOSE_NS)


class UcxTransport:
    """Listens on `host`, at `port` or at any free one, and connects to `ucx://host:port`.

    Make it on the loop that uses it. The first one of a process decides for all whether UCX keeps
    to loopback. A peer past the greeting is trusted: UCX reads its address as it comes. The secret
    guards the greeting; UCX's own endpoints know no secrets.
    """

    def __init__(self, *, host: str, port: int = 0, secret: PeerSecret | None = None) -> None:
        self._control = TcpTransport(host=host, port=port, kind="ucx", secret=secret)
        self._connections: set[UcxConnection] = set()
        self._is_closed = False
        UcxContext.acquire(host=host)

    async def listen(self, on_connection: OnConnection) -> Listener:
        """See Transport."""

        async def upgrade(control: Connection) -> None:
            connection = await self._with_endpoint(control)
            try:
                await on_connection(connection)
            finally:
                connection.close()

        return await self._control.listen(upgrade)

    async def connect(self, address: str, *, timeout_ns: int) -> Connection:
        """See Transport."""
        try:
            async with asyncio.timeout(seconds(timeout_ns)):
                control = await self._control.connect(address, timeout_ns=timeout_ns)
                return await self._with_endpoint(control)
        except (TimeoutError, ConnectionLost) as error:
            raise PeerUnreachable(f"{address}: {error or 'timed out'}") from error

    async def close(self) -> None:
        """See Transport."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._control.close()
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        UcxContext.release()

    async def _with_endpoint(self, control: Connection) -> UcxConnection:
        """Exchange UCX addresses and tags; both sides send theirs first."""
        receive_tag = UcxContext.new_tag()
        own = UcxContext.address()
        await control.send(_TAG.pack(receive_tag), [own], timeout_ns=HANDSHAKE_NS)
        theirs = await control.receive(timeout_ns=HANDSHAKE_NS)
        try:
            (send_tag,) = _TAG.unpack(theirs.header)
            endpoint = await UcxContext.endpoint(bytes(theirs.body))
        except (struct.error, UCXError) as error:
            control.close()
            raise ProtocolMismatch(f"{control.peer_address}: no UCX address: {error}") from error
        except asyncio.CancelledError:
            control.close()
            raise
        connection = UcxConnection(
            control, endpoint=endpoint, send_tag=send_tag, receive_tag=receive_tag
        )
        self._connections = {known for known in self._connections if not known.is_closed}
        self._connections.add(connection)
        return connection

"""Messages inside one process, with faults on demand: for tests, and for a fleet in one process.

Everybody who shares a LoopbackTransport can connect to one another. Bodies are copied twice, as a
network would, through memory that is kept warm as a kernel's is; a pipe holds a bounded number of
bytes and its sender waits for room.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Final

import structlog

from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import KIB, MIB, seconds
from libs.transfer.framing import allocated, body_bytes, checked_segments
from libs.transfer.guarded_connection import GuardedConnection
from libs.transfer.staging import StagingPool
from libs.transfer.transport import (
    Allocate,
    Buffer,
    Connection,
    Listener,
    Message,
    OnConnection,
    PeerUnreachable,
)

PIPE_BYTES_MAX: Final = 4 * MIB
"""On the way in one direction; one message may be longer if it is alone."""
POOLED_BYTES_MIN: Final = 64 * KIB
"""Shorter bodies are copied through memory of their own: a pool lends no less than a megabyte."""

_log = structlog.get_logger(__name__)


class LoopbackFaults:
    """What goes wrong on the way to one listener, in both directions."""

    def __init__(self) -> None:
        self.messages_until_cut: int | None = None
        """Messages that still pass; the one after them cuts the connection instead."""
        self.bodies_to_corrupt = 0
        """Non-empty bodies that arrive with one byte changed, from now on."""
        self._thawed = asyncio.Event()
        self._thawed.set()

    def freeze(self) -> None:
        """Let nothing through, as a stopped process or a network that drops everything."""
        self._thawed.clear()

    def thaw(self) -> None:
        """End a freeze; what waited goes on."""
        self._thawed.set()

    async def until_thawed(self) -> None:
        """Wait for the end of a freeze."""
        await self._thawed.wait()

    def cuts_now(self) -> bool:
        """Count a message; say whether the connection is cut in its place."""
        if self.messages_until_cut is None:
            return False
        if self.messages_until_cut == 0:
            self.messages_until_cut = None
            return True
        self.messages_until_cut -= 1
        return False

    def hurt(self, body: memoryview) -> None:
        """Change what is to arrive changed."""
        if body and self.bodies_to_corrupt:
            self.bodies_to_corrupt -= 1
            body[len(body) // 2] ^= 1


class _Pipe:
    """One direction of a connection; what was put before it closed can still be got."""

    def __init__(self, faults: LoopbackFaults) -> None:
        self._faults = faults
        self._messages: deque[tuple[bytes, memoryview]] = deque()
        self._staging = StagingPool()
        self._bytes = 0
        self._is_closed = False
        self._changed = asyncio.Event()

    def close(self) -> None:
        self._is_closed = True
        self._changed.set()

    async def put(self, header: bytes, segments: Sequence[memoryview]) -> None:
        size = body_bytes(segments)
        await self._faults.until_thawed()
        while not (self._is_closed or self._has_room(size)):
            await self._change()
        if not self._is_closed and self._faults.cuts_now():
            self._messages.clear()
            self.close()
        if self._is_closed:
            raise EOFError("closed by the peer")
        self._messages.append((header, self._copied(segments, size)))
        self._bytes += size
        self._changed.set()

    async def get(self, allocate: Allocate | None) -> Message:
        while not (self._is_closed or self._messages):
            await self._change()
        await self._faults.until_thawed()
        if not self._messages:
            raise EOFError("closed by the peer")
        header, arrived = self._messages.popleft()
        self._bytes -= arrived.nbytes
        self._changed.set()
        body = allocated(header, arrived.nbytes, allocate)
        body[:] = arrived
        if arrived.nbytes >= POOLED_BYTES_MIN:
            assert isinstance(arrived.obj, bytearray)
            self._staging.give_back(arrived.obj)
        return Message(header=header, body=body)

    def _copied(self, segments: Sequence[memoryview], size: int) -> memoryview:
        is_pooled = size >= POOLED_BYTES_MIN
        memory = self._staging.borrow(size) if is_pooled else bytearray(size)
        arriving = memoryview(memory)[:size]
        start = 0
        for segment in segments:
            arriving[start : start + segment.nbytes] = segment
            start += segment.nbytes
        self._faults.hurt(arriving)
        return arriving

    def _has_room(self, size: int) -> bool:
        return not self._messages or self._bytes + size <= PIPE_BYTES_MAX

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class LoopbackConnection(GuardedConnection):
    """One end of two pipes."""

    def __init__(self, *, outgoing: _Pipe, incoming: _Pipe, peer_address: str) -> None:
        super().__init__(peer_address=peer_address, broken_by=(EOFError,))
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, header: bytes, body: Sequence[Buffer], *, timeout_ns: int) -> None:
        """See Connection."""
        segments = checked_segments(header, body)
        async with self._call("send", timeout_ns=timeout_ns):
            await self._outgoing.put(header, segments)

    async def receive(
        self, *, timeout_ns: int | None = None, allocate: Allocate | None = None
    ) -> Message:
        """See Connection."""
        async with self._call("receive", timeout_ns=timeout_ns):
            return await self._incoming.get(allocate)

    def _interrupt(self) -> None:
        self._outgoing.close()
        self._incoming.close()


class LoopbackListener:
    """Runs one task per connection; `faults` befall all of them."""

    def __init__(self, *, address: str, on_connection: OnConnection) -> None:
        self.address = address
        self.faults = LoopbackFaults()
        self._on_connection = on_connection
        self._serving: dict[asyncio.Task[None], LoopbackConnection] = {}
        self._is_closed = False

    async def close(self) -> None:
        """See Listener."""
        self._is_closed = True
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection, as a network would."""
        for connection in list(self._serving.values()):
            connection.close()

    async def connect(self) -> LoopbackConnection:
        """Return the connecting end of a new connection."""
        await self.faults.until_thawed()
        if self._is_closed:
            raise PeerUnreachable(f"{self.address}: nobody listens")
        there, back = _Pipe(self.faults), _Pipe(self.faults)
        near = LoopbackConnection(outgoing=there, incoming=back, peer_address=self.address)
        far = LoopbackConnection(outgoing=back, incoming=there, peer_address=f"{self.address}/peer")
        task = asyncio.create_task(self._serve(far))
        self._serving[task] = far
        task.add_done_callback(self._end)
        return near

    async def _serve(self, connection: LoopbackConnection) -> None:
        try:
            await self._on_connection(connection)
        except (Unavailable, ContractViolation) as error:
            _log.info("connection_ended", reason=str(error), peer=connection.peer_address)

    def _end(self, task: asyncio.Task[None]) -> None:
        # Not in the task: one that is cancelled before its first step has no `finally`.
        self._serving.pop(task).close()


class LoopbackTransport:
    """A network of its own: addresses are `loopback://host/1` and so on, in order of listening."""

    def __init__(self, *, host: str) -> None:
        self._host = host
        self._numbers = itertools.count(1)
        self._listeners: dict[str, LoopbackListener] = {}
        self._connections: list[LoopbackConnection] = []

    async def listen(self, on_connection: OnConnection) -> Listener:
        """See Transport."""
        address = f"loopback://{self._host}/{next(self._numbers)}"
        listener = LoopbackListener(address=address, on_connection=on_connection)
        self._listeners[address] = listener
        return listener

    def listener_at(self, address: str) -> LoopbackListener:
        """Return who listens there, to inject faults. Raises: PeerUnreachable if nobody does."""
        if address not in self._listeners:
            raise PeerUnreachable(f"{address}: nobody listens")
        return self._listeners[address]

    async def connect(self, address: str, *, timeout_ns: int) -> Connection:
        """See Transport."""
        listener = self.listener_at(address)
        try:
            async with asyncio.timeout(seconds(timeout_ns)):
                connection = await listener.connect()
        except TimeoutError as error:
            raise PeerUnreachable(f"{address}: timed out") from error
        self._connections = [known for known in self._connections if not known.is_closed]
        self._connections.append(connection)
        return connection

    async def close(self) -> None:
        """See Transport."""
        for listener in self._listeners.values():
            await listener.close()
        for connection in self._connections:
            connection.close()

"""Notices over a Unix-domain socket: from a node's watcher to the workers of the same node.

This way needs no broker and no network. A worker that connects is told everything that holds, and
from then on every change and every repeat; so a connection that breaks, on whichever side, costs
nothing but the time to connect again. The watcher listens, workers only read.

A frame is the length of a message as four bytes, the highest first, and the message as msgpack.
"""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

from libs.contracts.preemption import NOTICES, Notice
from libs.contracts.wire import encode
from libs.kernel.errors import ConfigError, ContractViolation
from libs.kernel.units import KIB, NS_PER_MS, NS_PER_S, seconds

FRAME_BYTES_MAX: Final = 64 * KIB
"""A longer frame is none of ours: the reader hangs up and connects anew."""
BACKLOG_BYTES_MAX: Final = 256 * KIB
"""What a worker may leave unread; past it the watcher hangs up, and the worker connects anew."""
CONNECTIONS_MAX: Final = 256
"""One more is hung up on at once; a node has as many workers as GPUs."""
PATH_BYTES_MAX: Final = 107
"""The kernel's bound on the address of a socket, its terminating zero taken off."""
PROBE_TIMEOUT_S: Final = 1.0
RETRY_NS: Final = 100 * NS_PER_MS
"""First pause before connecting again; doubles with each failure in a row."""
RETRY_NS_MAX: Final = 2 * NS_PER_S

_LENGTH: Final = struct.Struct(">I")
_log = structlog.get_logger(__name__)


class NoticeServer:
    """The watcher's end. `on_connected` is called with the number of each new connection."""

    def __init__(self, path: Path, *, on_connected: Callable[[int], None]) -> None:
        self._path = path
        self._on_connected = on_connected
        self._server: asyncio.Server | None = None
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._connections_made = 0
        self.connections_dropped = 0
        """Connections hung up on: too many of them, or unread for too long."""

    @property
    def connections(self) -> int:
        """Workers that listen now."""
        return len(self._writers)

    async def start(self) -> None:
        """Listen, for this user and group only; what a dead watcher left there is removed.

        Raises: ConfigError if the path cannot be used or another watcher listens there.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _address(self._path) as address:
                _clear(self._path, address)
                self._server = await asyncio.start_unix_server(self._serve, address)
            self._path.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP)
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror or error}") from None

    def send(self, notices: tuple[Notice, ...], *, connection: int | None = None) -> None:
        """Send to one connection or to all; one that has gone is passed over."""
        frames = b"".join(map(_frame, notices))
        targets = list(self._writers) if connection is None else [connection]
        for number in targets:
            writer = self._writers.get(number)
            if writer is None:
                continue
            writer.write(frames)
            if writer.transport.get_write_buffer_size() > BACKLOG_BYTES_MAX:
                self._drop(writer)

    async def stop(self) -> None:
        """Hang up on everybody and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._writers.values()):
            writer.close()
        await self._server.wait_closed()
        self._server = None
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= CONNECTIONS_MAX:
            self._drop(writer)
            return
        self._connections_made += 1
        number = self._connections_made
        self._writers[number] = writer
        self._on_connected(number)
        try:
            while await reader.read(FRAME_BYTES_MAX):
                pass  # Workers say nothing; the end of what they say is the end of the worker.
        except OSError:
            pass
        finally:
            del self._writers[number]
            writer.close()

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        self.connections_dropped += 1
        writer.transport.abort()


class NoticeListener:
    """A worker's end: an endless iterator over what the node's watcher says.

    It connects by itself, again and again, whether the watcher is there yet, dies or is replaced.
    After each connection all that holds comes anew: the same notices again are no news, by their
    ids. What is no notice is counted, logged and passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_connected = False
        self.frames_refused = 0

    def __aiter__(self) -> AsyncIterator[Notice]:
        return self._notices()

    async def _notices(self) -> AsyncIterator[Notice]:
        retry_ns = RETRY_NS
        while True:
            try:
                with _address(self._path) as address:
                    reader, writer = await asyncio.open_unix_connection(address)
            except OSError:
                await asyncio.sleep(seconds(retry_ns))
                retry_ns = min(2 * retry_ns, RETRY_NS_MAX)
                continue
            retry_ns = RETRY_NS
            self.is_connected = True
            try:
                async for frame in self._frames(reader):
                    notice = self._decode(frame)
                    if notice is not None:
                        yield notice
            finally:
                self.is_connected = False
                writer.close()
            await asyncio.sleep(seconds(RETRY_NS))

    async def _frames(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """Yield frames until the connection ends or carries something else than frames."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                if length > FRAME_BYTES_MAX:
                    self._refuse(f"a frame of {length} bytes")
                    return
                yield await reader.readexactly(length)

    def _decode(self, frame: bytes) -> Notice | None:
        try:
            return NOTICES.decode(frame)
        except ContractViolation as violation:
            self._refuse(str(violation))
            return None

    def _refuse(self, reason: str) -> None:
        self.frames_refused += 1
        _log.warning("notice_refused", path=str(self._path), reason=reason)


def _frame(notice: Notice) -> bytes:
    payload = encode(notice)
    assert len(payload) <= FRAME_BYTES_MAX, "the contract bounds a notice far below this"
    return _LENGTH.pack(len(payload)) + payload


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """Yield the path in a form that fits into a socket's address, however deep its folder lies."""
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield os.fspath(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _clear(path: Path, address: str) -> None:
    """Remove a socket on which nobody listens. Raises: ConfigError if somebody does."""
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"{path}: is there already and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise ConfigError(f"{path}: another watcher listens there")

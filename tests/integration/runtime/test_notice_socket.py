"""The node's socket: everything at once on connecting, reconnecting by itself, bounded frames."""

import asyncio
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.contracts.preemption import Notice, NoticeKind, NoticeWithdrawn, PreemptionNotice
from libs.contracts.wire import encode
from libs.kernel.errors import ConfigError
from libs.runtime.notice_socket import FRAME_BYTES_MAX, NoticeListener, NoticeServer

WAIT_S = 20.0


def a_notice(notice_id: str = "n", **changes: Any) -> PreemptionNotice:
    fields = {"node_id": "node-a", "kind": NoticeKind.PREEMPTION, "source": "test", **changes}
    return PreemptionNotice(notice_id=notice_id, observed_at_unix_ns=1, grace_ns=5, **fields)


def a_withdrawal(notice_id: str = "n") -> NoticeWithdrawn:
    return NoticeWithdrawn(
        notice_id=notice_id, node_id="node-a", kind=NoticeKind.PREEMPTION, source="test"
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "notices.sock"


@asynccontextmanager
async def a_server(path: Path, *greeting: Notice) -> AsyncIterator[NoticeServer]:
    server = NoticeServer(
        path, on_connected=lambda number: server.send(greeting, connection=number)
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def until(is_reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_reached():
            await asyncio.sleep(0.001)


async def next_of(notices: Any) -> Any:
    async with asyncio.timeout(WAIT_S):
        return await anext(notices)


@asynccontextmanager
async def a_raw_server(path: Path, *payloads: bytes) -> AsyncIterator[None]:
    """Something that sends each connection the next of these bytes and hangs up."""
    left = list(payloads)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if left:
            writer.write(left.pop(0))
            await writer.drain()
        writer.close()

    path.parent.mkdir()
    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


def framed(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


async def test_a_worker_is_told_on_connecting_and_of_every_change_after(path: Path) -> None:
    holding = (a_notice("n"), a_withdrawal("old"))
    async with a_server(path, *holding) as server:
        first, second = NoticeListener(path), NoticeListener(path)
        heard, also_heard = aiter(first), aiter(second)
        assert (await next_of(heard), await next_of(heard)) == holding
        assert (await next_of(also_heard), await next_of(also_heard)) == holding
        server.send((a_withdrawal("n"),))
        assert await next_of(heard) == await next_of(also_heard) == a_withdrawal("n")
        assert server.connections == 2
        await heard.aclose()  # type: ignore[attr-defined]
        await until(lambda: server.connections == 1)


async def test_a_listener_waits_for_a_watcher_and_outlives_it(path: Path) -> None:
    listener = NoticeListener(path)
    heard = aiter(listener)
    waiting = asyncio.create_task(next_of(heard))
    for life in range(3):
        async with a_server(path, a_notice(f"life-{life}")):
            assert (await waiting).notice_id == f"life-{life}"
            assert listener.is_connected
            waiting = asyncio.create_task(next_of(heard))
        await until(lambda: not listener.is_connected)
    waiting.cancel()


async def test_what_is_no_notice_is_counted_and_the_next_is_heard(path: Path) -> None:
    good = framed(encode(a_notice()))
    newer = encode(a_notice("new")).replace(b"preemption_notice.v1", b"preemption_notice.v9")
    garbage = [framed(b""), framed(b"\xc1"), framed(encode(a_notice())[:-3]), framed(newer)]
    async with a_raw_server(path, b"".join([*garbage, good])):
        listener = NoticeListener(path)
        assert await next_of(aiter(listener)) == a_notice()
        assert listener.frames_refused == len(garbage)


@pytest.mark.parametrize(
    ("broken", "frames_refused"),
    [
        (struct.pack(">I", FRAME_BYTES_MAX + 1) + b"x" * 100, 1),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 1),
        (framed(encode(a_notice()))[:-1], 0),
        (b"\x00", 0),
        (b"", 0),
    ],
)
async def test_a_stream_that_is_none_of_ours_is_left_and_tried_again(
    path: Path, broken: bytes, frames_refused: int
) -> None:
    async with a_raw_server(path, broken, framed(encode(a_notice()))):
        listener = NoticeListener(path)
        assert await next_of(aiter(listener)) == a_notice()
        assert listener.frames_refused == frames_refused


async def test_a_frame_as_long_as_allowed_is_read(path: Path) -> None:
    payload = encode(a_notice()).ljust(FRAME_BYTES_MAX, b"\xc1")
    async with a_raw_server(path, framed(payload) + framed(encode(a_notice()))):
        listener = NoticeListener(path)
        assert await next_of(aiter(listener)) == a_notice()
        assert listener.frames_refused == 1


async def test_a_worker_that_never_reads_is_hung_up_on_and_others_are_served(path: Path) -> None:
    async with a_server(path) as server:
        _, sleeper = await asyncio.open_unix_connection(path, limit=1)
        await until(lambda: server.connections == 1)
        heard = aiter(NoticeListener(path))
        first = asyncio.create_task(next_of(heard))
        await until(lambda: server.connections == 2)
        detail = "x" * 500
        for number in range(20_000):
            server.send((a_notice(f"n{number}", detail=detail),))
            if number % 50 == 0:
                await asyncio.sleep(0)
            if server.connections_dropped:
                break
        assert (await first).notice_id == "n0"
        assert server.connections_dropped == 1
        sleeper.close()


async def test_the_socket_is_for_its_user_and_group_alone_and_goes_with_the_watcher(
    path: Path,
) -> None:
    async with a_server(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


async def test_what_a_killed_watcher_left_is_no_obstacle_and_a_living_one_is(path: Path) -> None:
    async with a_server(path):
        with pytest.raises(ConfigError, match="another watcher"):
            await NoticeServer(path, on_connected=lambda _: None).start()
    path.touch()
    with pytest.raises(ConfigError, match="no socket"):
        await NoticeServer(path, on_connected=lambda _: None).start()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    async with a_server(path):
        assert path.is_socket()


async def test_a_folder_may_lie_deeper_than_a_sockets_address_is_long(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120) / "notices.sock"
    heard = aiter(NoticeListener(deep))
    for _ in range(2):
        async with a_server(deep, a_notice()):
            assert await next_of(heard) == a_notice()
            with pytest.raises(ConfigError, match="another watcher"):
                await NoticeServer(deep, on_connected=lambda _: None).start()
        assert not deep.exists()


async def test_a_path_that_cannot_be_used_is_the_operators_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for unusable in (tmp_path / ("x" * 300), tmp_path / "file" / "notices.sock"):
        with pytest.raises(ConfigError, match=str(tmp_path)):
            await NoticeServer(unusable, on_connected=lambda _: None).start()

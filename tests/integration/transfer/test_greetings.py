"""Strangers and liars at the port: refused unread, and nobody else is hurt."""

import asyncio
import socket
import struct
from typing import Any

import pytest

from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.transfer.framing import GREETING_BYTES, pack_greeting, pack_lengths
from libs.transfer.tcp import TcpTransport, host_and_port
from libs.transfer.transport import (
    BODY_BYTES_MAX,
    HEADER_BYTES_MAX,
    PeerUnreachable,
    ProtocolMismatch,
)

SOON_NS = 10 * NS_PER_S
pytestmark = pytest.mark.parametrize("kind", ["tcp"], indirect=True)


async def _say(address: str, *parts: bytes) -> bytes:
    """Send the parts to a listener; return all it says until it closes."""
    reader, writer = await asyncio.open_connection(*host_and_port(address, kind="tcp"))
    try:
        for part in parts:
            writer.write(part)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        bytes(100),
        pack_greeting("ucx"),
        struct.pack(">4sH10s32s", b"TIDE", 1, b"tcp", bytes(32)),
    ],
    ids=["http", "zeros", "another transport", "another version"],
)
async def test_a_stranger_is_shown_the_door_and_others_are_served(
    link: Any, greeting: bytes
) -> None:
    async with link() as world:
        assert await _say(world.address, greeting) in (pack_greeting("tcp"), b"")
        assert not world.peer.connections
        connection = await world.connect()
        await connection.send(b"echo", [b"hello"], timeout_ns=SOON_NS)
        assert (await connection.receive(timeout_ns=SOON_NS)).body == b"hello"


@pytest.mark.parametrize(
    "lengths",
    [
        pack_lengths(bytes(HEADER_BYTES_MAX + 1), 0),
        struct.pack(">IQ", 10, BODY_BYTES_MAX + 1),
        struct.pack(">IQ", 2**32 - 1, 2**64 - 1),
    ],
)
async def test_lengths_over_the_bounds_end_the_connection(link: Any, lengths: bytes) -> None:
    async with link() as world:
        # Nothing follows: a listener that waited for such a body would never close.
        assert await _say(world.address, pack_greeting("tcp"), lengths) in (
            pack_greeting("tcp"),
            b"",
        )


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(GREETING_BYTES), ProtocolMismatch),
        (pack_greeting("ucx"), ProtocolMismatch),
        (b"", PeerUnreachable),
        (pack_greeting("tcp")[:5], PeerUnreachable),
    ],
    ids=["http", "another transport", "closed", "half a greeting"],
)
async def test_a_server_of_something_else_is_not_taken_for_a_peer(
    kind: str, answer: bytes, error: type[Exception]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(error):
            await TcpTransport(host="127.0.0.1").connect(
                f"tcp://127.0.0.1:{port}", timeout_ns=SOON_NS
            )


async def test_a_server_that_says_nothing_is_given_up(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PeerUnreachable):
            await TcpTransport(host="127.0.0.1").connect(
                f"tcp://127.0.0.1:{port}", timeout_ns=100 * NS_PER_MS
            )


@pytest.mark.parametrize("address", ["", "tcp://", "tcp://127.0.0.1", "ucx://127.0.0.1:1", "a:b:c"])
async def test_what_is_no_address_is_unreachable(kind: str, address: str) -> None:
    with pytest.raises(PeerUnreachable):
        await TcpTransport(host="127.0.0.1").connect(address, timeout_ns=SOON_NS)

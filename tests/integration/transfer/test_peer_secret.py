"""Who lacks the fleet's secret is shown the door, by what he says, hears or repeats."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

import pytest

from libs.kernel.units import NS_PER_S
from libs.transfer.framing import GREETING_BYTES, pack_greeting
from libs.transfer.opening import open_transport
from libs.transfer.peer_secret import PROOF_BYTES, PeerSecret, Role
from libs.transfer.tcp import host_and_port
from libs.transfer.transport import PeerUnreachable, ProtocolMismatch, Transport
from tests.integration.transfer.peer_process import EchoPeer

SOON_NS = 10 * NS_PER_S
SECRET = PeerSecret(b"s" * 32)
OTHER = PeerSecret(b"o" * 32)
KINDS = [
    "tcp",
    pytest.param(
        "ucx",
        marks=pytest.mark.skipif(find_spec("ucxx") is None, reason="ucxx is not installed"),
    ),
]
pytestmark = pytest.mark.parametrize("kind", KINDS)


@asynccontextmanager
async def transport_of(kind: str, secret: PeerSecret | None) -> AsyncIterator[Transport]:
    transport = open_transport(kind, host="127.0.0.1", secret=secret)  # type: ignore[arg-type]
    try:
        yield transport
    finally:
        await transport.close()


@pytest.mark.parametrize("secret", [SECRET, None], ids=["with", "without"])
async def test_peers_that_hold_the_same_talk(kind: str, secret: PeerSecret | None) -> None:
    async with transport_of(kind, secret) as here, transport_of(kind, secret) as there:
        listener = await there.listen(EchoPeer().serve)
        connection = await here.connect(listener.address, timeout_ns=SOON_NS)
        await connection.send(b"echo", [b"hello"], timeout_ns=SOON_NS)
        assert bytes((await connection.receive(timeout_ns=SOON_NS)).body) == b"hello"


@pytest.mark.parametrize(
    ("connecting", "listening"),
    [(SECRET, OTHER), (SECRET, None), (None, SECRET)],
    ids=["another secret", "no secret there", "no secret here"],
)
async def test_peers_that_do_not_refuse_each_other(
    kind: str, connecting: PeerSecret | None, listening: PeerSecret | None
) -> None:
    peer = EchoPeer()
    async with transport_of(kind, connecting) as here, transport_of(kind, listening) as there:
        listener = await there.listen(peer.serve)
        # Whichever side looks first closes, which the other may see before its own verdict.
        with pytest.raises((ProtocolMismatch, PeerUnreachable)):
            await here.connect(listener.address, timeout_ns=SOON_NS)
        assert not peer.connections


class Stranger:
    """Speaks the protocol, and holds no secret."""

    def __init__(self, address: str, *, kind: str) -> None:
        self._host, self._port = host_and_port(address, kind=kind)
        self.heard = b""

    async def say(self, greeting: bytes, *, proof: bytes | None) -> None:
        """Greet; prove by these bytes, or by sending back what the peer proves itself with."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(greeting)
            self.heard = await reader.readexactly(GREETING_BYTES)
            if proof is None:
                proof = await reader.readexactly(PROOF_BYTES)
            writer.write(proof)
            self.heard += await reader.read()
        except ConnectionResetError:
            pass
        finally:
            writer.close()


async def test_a_proof_that_was_overheard_or_is_sent_back_proves_nothing(kind: str) -> None:
    peer = EchoPeer()
    greeting = pack_greeting(kind, nonce=b"n" * 32)
    async with transport_of(kind, SECRET) as there:
        listener = await there.listen(peer.serve)
        stranger = Stranger(listener.address, kind=kind)
        await stranger.say(greeting, proof=None)
        old_greeting = stranger.heard[:GREETING_BYTES]
        # What a worker that holds the secret once sent to this listener, word for word.
        overheard = SECRET.proof(Role.CONNECTS, own_greeting=greeting, peer_greeting=old_greeting)
        await stranger.say(greeting, proof=overheard)
        assert stranger.heard[:GREETING_BYTES] != old_greeting
        assert not peer.connections


async def test_a_listener_without_the_secret_cannot_send_back_the_callers_own_words(
    kind: str,
) -> None:
    has_closed = asyncio.Event()

    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(GREETING_BYTES))
        writer.write(await reader.readexactly(PROOF_BYTES))
        await reader.read()
        writer.close()
        await writer.wait_closed()
        has_closed.set()

    server = await asyncio.start_server(mirror, "127.0.0.1", 0)
    async with server, transport_of(kind, SECRET) as here:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ProtocolMismatch, match="another secret"):
            await here.connect(f"{kind}://127.0.0.1:{port}", timeout_ns=SOON_NS)
        await has_closed.wait()

"""Coroutine tests, and peers over every transport: in this process, or one that can be killed."""

import asyncio
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from libs.kernel.units import NS_PER_S
from libs.transfer.loopback import LoopbackTransport
from libs.transfer.opening import open_transport
from libs.transfer.transport import Connection, Transport
from tests.integration.transfer.peer_process import EchoPeer

REPOSITORY = Path(__file__).resolve().parents[3]
TEST_TIMEOUT_S = 60
SOON_NS = 10 * NS_PER_S

KINDS = [
    "loopback",
    "tcp",
    pytest.param(
        "ucx",
        marks=pytest.mark.skipif(find_spec("ucxx") is None, reason="ucxx is not installed"),
    ),
]


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own, never for ever."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames

    async def run() -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})

    asyncio.run(run())
    return True


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The transport under test."""
    return str(request.param)


@dataclass
class Link:
    """A transport, and an echoing peer of it in this process."""

    transport: Transport
    address: str
    peer: EchoPeer

    async def connect(self) -> Connection:
        return await self.transport.connect(self.address, timeout_ns=SOON_NS)


@pytest.fixture
def link(kind: str) -> Callable[[], AbstractAsyncContextManager[Link]]:
    """Opens a link, closes it afterwards."""

    @asynccontextmanager
    async def open_link() -> AsyncIterator[Link]:
        transport = open_transport(kind, host="127.0.0.1")  # type: ignore[arg-type]
        peer = EchoPeer()
        try:
            listener = await transport.listen(peer.serve)
            yield Link(transport=transport, address=listener.address, peer=peer)
        finally:
            await transport.close()

    return open_link


@dataclass
class Mortal:
    """A peer that can be killed and frozen."""

    transport: Transport
    address: str
    kill: Callable[[], None]
    freeze: Callable[[], None]

    async def connect(self) -> Connection:
        return await self.transport.connect(self.address, timeout_ns=SOON_NS)


@pytest.fixture
def mortal(kind: str) -> Callable[[], AbstractAsyncContextManager[Mortal]]:
    """Starts a peer: a real process, except over loopback, where the transport injects the same."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Mortal]:
        transport = open_transport(kind, host="127.0.0.1")  # type: ignore[arg-type]
        try:
            if isinstance(transport, LoopbackTransport):
                listener = await transport.listen(EchoPeer().serve)
                link = transport.listener_at(listener.address)
                yield Mortal(transport, listener.address, link.cut, link.faults.freeze)
            else:
                async with _peer_process(kind) as (process, address):
                    yield Mortal(
                        transport,
                        address,
                        process.kill,
                        lambda: os.kill(process.pid, signal.SIGSTOP),
                    )
        finally:
            await transport.close()

    return start


@asynccontextmanager
async def _peer_process(kind: str) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.transfer.peer_process", kind],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = await asyncio.to_thread(process.stdout.readline)
        yield process, address.strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

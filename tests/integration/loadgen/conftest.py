"""Coroutine tests, a server that answers byte for byte as told, and a small fleet."""

import asyncio
import inspect
import json
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from loadgen.workload import LoadRequest
from services.launcher.fleet import Fleet
from services.launcher.model_source import bundled_model
from services.launcher.recipes import FleetOptions

REPOSITORY = Path(__file__).resolve().parents[3]
COMMAND_TIMEOUT_S = 120


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def a_request() -> Callable[..., LoadRequest]:
    """Builds requests."""

    def build(**changed: Any) -> LoadRequest:
        given = {"index": 0, "arrival_ns": 0, "prompt": (20, 21), "output_tokens": 3, "seed": 9}
        return LoadRequest(**{**given, **changed})

    return build


@dataclass
class ByteServer:
    """Answers every request with the same bytes, then ends the connection as told."""

    answer: bytes
    is_reset: bool = False
    """End with a reset instead of a clean close."""
    is_stalled: bool = False
    """Do not end at all; wait for the client to go."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """A request has come."""
    client_gone: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ByteServer"]:
        """Listen on a free loopback port until the block is left."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        async with server:
            yield self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        self.bodies.append(json.loads(await reader.readexactly(length)))
        self.asked.set()
        writer.write(self.answer)
        await writer.drain()
        if self.is_stalled:
            assert await reader.read() == b""
            self.client_gone.set()
        if self.is_reset:
            # Lingering for no time at all is what makes the kernel send a reset.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        else:
            writer.close()
            await writer.wait_closed()


@pytest.fixture
def byte_server() -> type[ByteServer]:
    """The class, for tests to make theirs."""
    return ByteServer


@dataclass(frozen=True, kw_only=True)
class SmallFleet:
    """Where a fleet of one worker and one router can be reached."""

    nats_url: str
    http_url: str

    def load(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run the command in a process of its own; return its exit code and its JSON."""
        return run_command("run", *arguments, "--json", "-")


def run_command(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run `python -m loadgen`; what it prints must be one line of JSON."""
    command: Sequence[str] = [sys.executable, "-m", "loadgen", *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def small_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallFleet]:
    """A broker, a worker, a router and a gateway as processes."""
    with asyncio.Runner() as runner:
        fleet = Fleet(
            FleetOptions(
                model=bundled_model(),
                data_folder=tmp_path_factory.mktemp("fleet"),
                workers=1,
                routers=1,
                http_port=0,
            ),
            say=lambda line: None,
        )
        try:
            runner.run(fleet.start())
            assert fleet.http_url is not None
            yield SmallFleet(nats_url=fleet.nats_url, http_url=fleet.http_url)
        finally:
            runner.run(fleet.stop())

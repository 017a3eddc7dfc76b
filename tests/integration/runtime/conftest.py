"""Worlds for the bus suite: an in-memory hub, and nats-server in the versions that can be had."""

import asyncio
import inspect
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from libs.kernel.errors import ConfigError
from libs.runtime.bus import Bus, StreamOptions, Subscription
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions
from libs.runtime.nats_server_search import find_nats_server

NEW_SERVER = "TIDESERVE_NATS_SERVER_NEW"

_numbers = itertools.count(1)


class World(Protocol):
    """A broker, and clients of it."""

    is_nats: bool

    def bus(self) -> "AsyncIterator[Bus]": ...

    def name(self, base: str) -> str: ...


class MemoryWorld:
    """One in-memory hub."""

    is_nats = False

    def __init__(self) -> None:
        self.hub = MemoryHub()

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        bus = MemoryBus(self.hub)
        try:
            yield bus
        finally:
            await bus.close()

    def name(self, base: str) -> str:
        return f"{base}_{next(_numbers)}"


class NatsWorld:
    """One nats-server; names keep tests apart."""

    is_nats = True

    def __init__(self, server: NatsServer) -> None:
        self.server = server

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        bus = await NatsBus.connect(self.server.url, name="suite")
        try:
            yield bus
        finally:
            await bus.close()

    def name(self, base: str) -> str:
        return f"{base}_{next(_numbers)}"


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, NatsServer]]:
    """Servers started so far, stopped at the end of the session."""
    started: dict[str, NatsServer] = {}
    yield started
    for server in started.values():
        server.stop()


@pytest.fixture(params=["memory", "nats", "nats_new"])
def world(
    request: pytest.FixtureRequest,
    servers: dict[str, NatsServer],
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    if request.param == "memory":
        return MemoryWorld()
    return NatsWorld(_server(request.param, servers, tmp_path_factory.mktemp("nats")))


@pytest.fixture(params=["nats", "nats_new"])
def nats_world(
    request: pytest.FixtureRequest,
    servers: dict[str, NatsServer],
    tmp_path_factory: pytest.TempPathFactory,
) -> NatsWorld:
    return NatsWorld(_server(request.param, servers, tmp_path_factory.mktemp("nats")))


def _server(kind: str, servers: dict[str, NatsServer], folder: Path) -> NatsServer:
    server = servers.get(kind)
    if server is None:
        server = servers[kind] = NatsServer(
            ServerOptions(data_folder=folder), program=find_nats_server(environment=_where(kind))
        )
    if not server.is_running:
        server.start()
    return server


def _where(kind: str) -> dict[str, str]:
    environment = dict(os.environ)
    if kind == "nats_new":
        newer = environment.get(NEW_SERVER)
        if not newer:
            pytest.skip(f"{NEW_SERVER} names no nats-server 2.10 or newer")
        return {"TIDESERVE_NATS_SERVER": newer}
    try:
        find_nats_server(environment=environment, may_fetch=False)
    except ConfigError as error:
        pytest.skip(str(error))
    return environment


@pytest.fixture
def a_stream() -> Callable[..., object]:
    """Builds a small memory stream; changes are fields of StreamOptions."""
    return _a_stream


@pytest.fixture
def received() -> Callable[..., object]:
    """Reads the payloads of the next messages, which must come."""
    return _received


async def _a_stream(bus: Bus, name: str, **changes: object) -> StreamOptions:
    options: dict[str, object] = {
        "name": name,
        "subjects": (f"{name}.>",),
        "messages_max": 1000,
        "bytes_max": 1_000_000,
        "age_max_ns": None,
        "storage": "memory",
    }
    stream = StreamOptions(**(options | changes))  # type: ignore[arg-type]
    await bus.ensure_stream(stream)
    return stream


async def _received(subscription: Subscription, count: int) -> list[bytes]:
    async with asyncio.timeout(5):
        return [(await anext(aiter(subscription))).payload for _ in range(count)]

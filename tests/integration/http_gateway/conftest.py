"""A gateway on loopback before a scripted router and a scripted offline queue.

Over an in-memory bus or a real one.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from libs.contracts.online import SubmitRequest
from libs.runtime.blob_store import open_blob_store
from libs.runtime.bus import Bus
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions
from services.http_gateway.config import GatewayConfig
from services.http_gateway.gateway import RunningGateway, running_gateway
from tests.scripted_queue import QueueScript, ScriptedQueue
from tests.scripted_router import LossyLink, Script, ScriptedRouter


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--api-cases", type=int, default=8, help="generated requests per endpoint")


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A gateway, its router and clients of it."""

    gateway: RunningGateway
    router: ScriptedRouter
    bus: Bus
    """The gateway's."""
    queue: ScriptedQueue
    hub: MemoryHub
    openai_clients: list[openai.AsyncOpenAI]
    http: httpx.AsyncClient

    @property
    def openai(self) -> openai.AsyncOpenAI:
        """The official client; made when first asked for, because that takes 70 ms."""
        if not self.openai_clients:
            self.openai_clients.append(
                openai.AsyncOpenAI(
                    base_url=f"{self.gateway.http_url}/v1",
                    api_key="none",
                    max_retries=0,
                    timeout=20,
                )
            )
        return self.openai_clients[0]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = httpx.URL(self.gateway.http_url)
        assert url.port is not None
        return url.host, url.port


class Stacks:
    """Builds stacks."""

    def __init__(self, nats_url: str | None, *, folder: Path) -> None:
        self._nats_url = nats_url
        self._folder = folder

    @asynccontextmanager
    async def __call__(
        self,
        script: Script | Callable[[SubmitRequest], Script] | None = None,
        *,
        link: LossyLink | None = None,
        has_router: bool = True,
        queue: QueueScript | None = None,
        **settings: object,
    ) -> AsyncIterator[Stack]:
        hub = MemoryHub()
        script_of = script if callable(script) else lambda _: script or Script()
        blob_store = f"folder:{self._folder}"
        quick = {
            "port": 0,
            "report_interval_s": 0.1,
            "acceptance_wait_s": 1.0,
            "blob_store": blob_store,
        }
        config = GatewayConfig(**{**quick, **settings})  # type: ignore[arg-type]
        async with AsyncExitStack() as stack:
            router = ScriptedRouter(await self._bus(hub, stack), script_of=script_of, link=link)
            if has_router:
                await stack.enter_async_context(router.serving())
            offline = ScriptedQueue(
                await self._bus(hub, stack), open_blob_store(blob_store), queue or QueueScript()
            )
            if queue is not None:
                await stack.enter_async_context(offline.serving())
            gateway_bus = await self._bus(hub, stack)
            gateway = await stack.enter_async_context(running_gateway(gateway_bus, config))
            http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=gateway.http_url, timeout=20, verify=False)
            )
            if has_router:
                await until(lambda: bool(gateway.view.has_router and gateway.view.models()))
            made = Stack(
                gateway=gateway,
                router=router,
                bus=gateway_bus,
                queue=offline,
                hub=hub,
                openai_clients=[],
                http=http,
            )
            try:
                yield made
            finally:
                for client in made.openai_clients:
                    await client.close()

    async def _bus(self, hub: MemoryHub, stack: AsyncExitStack) -> Bus:
        if self._nats_url is None:
            return MemoryBus(hub)
        bus = await NatsBus.connect(self._nats_url, name="stack")
        stack.push_async_callback(bus.close)
        return bus


async def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A nats-server of our own."""
    folder: Path = tmp_path_factory.mktemp("nats")
    with NatsServer(ServerOptions(data_folder=folder)) as server:
        yield server.url


@pytest.fixture
def a_stack(tmp_path: Path) -> Stacks:
    """Stacks over an in-memory bus."""
    return Stacks(None, folder=tmp_path / "blobs")


@pytest.fixture(params=["memory", "nats"])
def any_stack(request: pytest.FixtureRequest, tmp_path: Path) -> Stacks:
    """Stacks over an in-memory bus, and over a NATS server."""
    nats_url = request.getfixturevalue("nats_url") if request.param == "nats" else None
    return Stacks(nats_url, folder=tmp_path / "blobs")

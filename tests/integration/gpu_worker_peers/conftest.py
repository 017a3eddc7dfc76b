"""Coroutine tests, and fleets of workers over every transport."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec

import pytest
import torch

from services.gpu_worker.peers.ports import PeerOptions
from tests.integration.gpu_worker_peers.fleet import Fleet

TEST_TIMEOUT_S = 60

KINDS = [
    "loopback",
    "tcp",
    pytest.param(
        "ucx",
        marks=pytest.mark.skipif(find_spec("ucxx") is None, reason="ucxx is not installed"),
    ),
]
OpenFleet = Callable[..., AbstractAsyncContextManager[Fleet]]


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


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The transport under test."""
    return str(request.param)


@pytest.fixture
def fleet() -> OpenFleet:
    """Starts so many workers, stops them afterwards."""

    @asynccontextmanager
    async def start(
        workers: int, kind: str = "loopback", options: PeerOptions | None = None
    ) -> AsyncIterator[Fleet]:
        fleet = Fleet(kind, options=options)
        try:
            await fleet.start(workers)
            yield fleet
        finally:
            await fleet.close()

    return start

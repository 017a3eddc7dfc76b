"""A real broker for the client."""

import asyncio
import inspect
from collections.abc import Iterator

import pytest

from libs.runtime.nats_server import NatsServer, ServerOptions


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server of our own, to be stopped and started at will."""
    options = ServerOptions(data_folder=tmp_path_factory.mktemp("nats"))
    with NatsServer(options) as server:
        yield server

"""The clouds' metadata servers on loopback, and watchers in this process and in their own."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from libs.runtime.clock import Clock

WAIT_S = 20.0
"""Nothing here takes a second; a busy machine may."""


@dataclass
class Call:
    """One request as a server sees it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    """What a server answers; with `more`, the body goes on for as long as that yields."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    more: AsyncIterator[bytes] | None = None

    @classmethod
    def of_json(cls, value: Any, *, status: int = 200) -> "Reply":
        return cls(
            status=status,
            body=json.dumps(value).encode(),
            headers={"content-type": "application/json"},
        )


Handler = Callable[[Call], Awaitable[Reply]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve on a free port of loopback; yield the base URL."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        body, has_more = b"", True
        while has_more:
            part = await receive()
            body += part.get("body", b"")
            has_more = part.get("more_body", False)
        query = {
            name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()
        }
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        reply = await handler(Call(scope["method"], scope["path"], query, headers, body))
        sent = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": sent})
        if reply.more is not None:
            await send({"type": "http.response.body", "body": reply.body, "more_body": True})
            async for part_of_body in reply.more:
                await send({"type": "http.response.body", "body": part_of_body, "more_body": True})
            reply.body = b""
        await send({"type": "http.response.body", "body": reply.body})

    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=0
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server._serve())
    try:
        while not server.started:
            assert not running.done(), "the server does not start"
            await asyncio.sleep(0.001)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        server.force_exit = True
        await running


class SteppedClock:
    """Both clocks stand still until a test moves them."""

    def __init__(self, *, now_unix_ns: int = 1_800_000_000_000_000_000) -> None:
        self._now_ns = 1
        self._now_unix_ns = now_unix_ns

    def now_ns(self) -> int:
        return self._now_ns

    def now_unix_ns(self) -> int:
        return self._now_unix_ns

    def advance(self, duration_ns: int) -> None:
        self._now_ns += duration_ns
        self._now_unix_ns += duration_ns


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own, for a bounded time."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames

    async def bounded() -> None:
        async with asyncio.timeout(3 * WAIT_S):
            await pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})

    asyncio.run(bounded())
    return True


@pytest.fixture
def cloud() -> Callable[[Handler], Any]:
    """Serve a handler of Call to Reply."""
    return serving


@pytest.fixture
def reply() -> type[Reply]:
    return Reply


@pytest.fixture
def clock() -> Clock:
    return SteppedClock()

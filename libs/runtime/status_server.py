"""The small HTTP port of a service: /metrics, /live and /health. Not for users' traffic."""

import asyncio
from collections.abc import Callable
from typing import Final

from libs.kernel.errors import ConfigError
from libs.runtime.metrics import CONTENT_TYPE, Metrics

REQUEST_TIMEOUT_S: Final = 5.0
HEAD_BYTES_MAX: Final = 8 * 1024
CONNECTIONS_MAX: Final = 64
"""One more is closed unanswered; scrapers and probes are few."""


class StatusServer:
    """Answers scrapers and probes from the service's own loop.

    /live is 200 while the loop turns; /health is 200 when `is_ready` says so and 503 otherwise, so
    that a draining service gets no new work; /metrics is the exposition.
    """

    def __init__(self, *, metrics: Metrics, is_ready: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._is_ready = is_ready
        self._server: asyncio.Server | None = None
        self._connections = 0

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        assert self._server is not None, "the status server is not started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, *, host: str, port: int) -> None:
        """Listen; port 0 takes a free one. Raises: ConfigError if the port is taken."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=HEAD_BYTES_MAX)
        except OSError as error:
            raise ConfigError(f"status port {host}:{port}: {error.strerror or error}") from None

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= CONNECTIONS_MAX:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # Whoever it was has gone or does not speak HTTP.
        finally:
            self._connections -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or words[0] not in (b"GET", b"HEAD"):
            return _response(405, b"method not allowed\n")
        path = words[1].partition(b"?")[0]
        match path:
            case b"/metrics":
                return _response(200, self._metrics.exposition(), content_type=CONTENT_TYPE)
            case b"/live":
                return _response(200, b"alive\n")
            case b"/health":
                is_ready = self._is_ready()
                return _response(200, b"ready\n") if is_ready else _response(503, b"not ready\n")
            case _:
                return _response(404, b"not found\n")


_REASONS: Final = {
    200: "OK",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


def _response(status: int, body: bytes, *, content_type: str = "text/plain") -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body

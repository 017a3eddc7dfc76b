"""A server-sent event stream that either ends well or visibly breaks.

Most clients take a stream that simply ends for a success. When an answer cannot go on, the error
goes out as an event and the connection is then closed without the terminating chunk of the chunked
encoding, which HTTP libraries report as a broken transfer.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from libs.openai_api.answer_form import JsonObject

DONE: Final = b"data: [DONE]\n\n"


class BrokenAnswer(Exception):
    """Raised by the events of a stream, after they told the error: cut the connection."""


def event(content: JsonObject) -> bytes:
    """Return one event."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


class EventStream(Response):
    """Sends events as they come; closes their generator when the client goes away.

    A client that stays connected and does not read is cut off after `life_s_max` seconds.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        life_s_max: float,
        on_close: Callable[[], Coroutine[Any, Any, None]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # Proxies must neither store the events nor wait for more of them.
        own = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        self.status_code = 200
        self.background = None
        self._events = events
        self._life_s_max = life_s_max
        self._on_close = on_close
        self.init_headers({**own, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run until the events end, break, or nobody reads them any more."""
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait(
                {writing, leaving},
                timeout=self._life_s_max,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.wait({writing, leaving})
            await self._events.aclose()
            await self._on_close()  # Not left to the generator: it may never have begun.
        if not writing.cancelled():
            writing.result()

    async def _write(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            async for content in self._events:
                await send({"type": "http.response.body", "body": content, "more_body": True})
        except BrokenAnswer:
            return  # Without the last, empty body: the server then closes the connection.
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass

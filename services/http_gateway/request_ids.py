"""Gives each HTTP request its ids, and counts the responses."""

import re
import uuid
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.http_gateway.measures import Measures

REQUEST_ID_HEADER: Final = "x-request-id"
UNMATCHED_ROUTE: Final = "unmatched"
_CALLERS_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class RequestIds:
    """Sets the request's own id, which becomes part of subjects, and answers `x-request-id`.

    A caller's id of plain characters comes back in that header, and in the log beside ours. It
    names no session: whoever repeats or guesses an id must not get another's answer.
    """

    def __init__(self, app: ASGIApp, *, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; see the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        callers_id = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        shown_id = callers_id if _CALLERS_ID.fullmatch(callers_id) else request_id
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["shown_id"] = shown_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (REQUEST_ID_HEADER.encode(), shown_id.encode())
                message["headers"] = [*message.get("headers", ()), header]
                route = getattr(scope.get("route"), "path", UNMATCHED_ROUTE)
                self._measures.answered(route=route, status=message["status"])
            await send(message)

        await self._app(scope, receive, send_with_id)


def request_id_of(request: Request) -> str:
    """Return our own id."""
    request_id: str = request.state.request_id
    return request_id


def shown_id_of(request: Request) -> str:
    """Return the id by which the caller knows the request."""
    shown_id: str = request.state.shown_id
    return shown_id

"""Where the page, its files and its events are served. Nothing on it comes from elsewhere."""

from collections.abc import Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from services.http_gateway.dashboard.feed import WATCHERS_MAX, DashboardFeed
from services.http_gateway.sse import EventStream

STREAM_LIFE_S_MAX: Final = 3600.0
"""A browser connects again by itself."""
_PAGE: Final = files("services.http_gateway.dashboard") / "page"
_MEDIA_TYPES: Final = {
    "index.html": "text/html; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
}
_HEADERS: Final[Mapping[str, str]] = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class DashboardRoutes:
    """GET /dashboard, its stylesheet and script, and /dashboard/events."""

    def __init__(self, feed: DashboardFeed) -> None:
        self._feed = feed
        self._contents = {name: (_PAGE / name).read_bytes() for name in _MEDIA_TYPES}

    def add_to(self, app: FastAPI) -> None:
        """Serve them."""
        get = ["GET"]
        app.add_api_route("/dashboard", self.page, methods=get)
        app.add_api_route("/dashboard/dashboard.css", self.stylesheet, methods=get)
        app.add_api_route("/dashboard/dashboard.js", self.script, methods=get)
        app.add_api_route("/dashboard/events", self.events, methods=get)

    async def page(self) -> Response:
        """Answer GET /dashboard."""
        return self._file("index.html")

    async def stylesheet(self) -> Response:
        """Answer GET /dashboard/dashboard.css."""
        return self._file("dashboard.css")

    async def script(self) -> Response:
        """Answer GET /dashboard/dashboard.js."""
        return self._file("dashboard.js")

    async def events(self) -> Response:
        """Answer GET /dashboard/events: the past, then a snapshot a second."""
        feed = self._feed
        if feed.watchers >= WATCHERS_MAX:
            message = f"{WATCHERS_MAX} pages are open at this gateway already"
            return JSONResponse(
                {"error": {"message": message}}, status_code=HTTPStatus.SERVICE_UNAVAILABLE
            )
        feed.watchers += 1
        return EventStream(feed.events(), life_s_max=STREAM_LIFE_S_MAX, on_close=self._closed)

    async def _closed(self) -> None:
        self._feed.watchers -= 1

    def _file(self, name: str) -> Response:
        return Response(self._contents[name], media_type=_MEDIA_TYPES[name], headers=_HEADERS)

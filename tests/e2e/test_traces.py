"""One request is one trace through gateway, router and worker, as a loopback receiver sees it."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.launcher.fleet import Fleet
from services.launcher.model_source import bundled_model
from services.launcher.recipes import FleetOptions

CALLERS_TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLERS_SPAN = "b7ad6b7169203331"
MAX_TOKENS = 40
SERVICES = ("HTTP_GATEWAY", "ONLINE_ROUTER", "GPU_WORKER")


class Receiver:
    """Keeps every span that is sent to it, with the name of its service."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []

    def take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {a.key: a.value.string_value for a in group.resource.attributes}
            for scope in group.scope_spans:
                self.spans += [(resource["service.name"], span) for span in scope.spans]

    def of_trace(self, trace_id: str) -> dict[str, Any]:
        found = [(name, s) for name, s in self.spans if s.trace_id.hex() == trace_id]
        assert len(dict(found)) == len(found), "a service made two spans of one request"
        return dict(found)


@contextmanager
def a_receiver() -> Iterator[tuple[Receiver, str]]:
    """An OTLP receiver over HTTP."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            receiver.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield receiver, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


async def ask(fleet: Fleet) -> None:
    body = {"model": fleet.alias, "prompt": "The tide", "max_tokens": MAX_TOKENS, "stream": True}
    headers = {"traceparent": f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01"}
    async with (
        httpx.AsyncClient(base_url=str(fleet.http_url), timeout=60) as http,
        http.stream(
            "POST", "/v1/completions", json={**body, "ignore_eos": True}, headers=headers
        ) as response,
    ):
        lines = [line async for line in response.aiter_lines()]
        assert "data: [DONE]" in lines


async def play(folder: Path) -> None:
    options = FleetOptions(model=bundled_model(), data_folder=folder, workers=1, http_port=0)
    fleet = Fleet(options, say=print)
    try:
        await fleet.start()
        await ask(fleet)
    finally:
        await fleet.stop()  # each service sends what it has left


def test_a_request_is_one_trace_with_one_span_per_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_receiver() as (receiver, url):
        for service in SERVICES:
            monkeypatch.setenv(f"{service}__OTLP_ENDPOINT", url)
        asyncio.run(play(tmp_path))
    trace = receiver.of_trace(CALLERS_TRACE)
    answer, route, generate = (
        trace[name] for name in ("http-gateway", "online-router", "gpu-worker")
    )
    assert len(trace) == len(receiver.spans) == 3, "no span per token"
    assert answer.parent_span_id.hex() == CALLERS_SPAN
    assert route.parent_span_id == answer.span_id
    assert generate.parent_span_id == route.span_id
    for span in (answer, route, generate):
        said = {a.key: a.value for a in span.attributes}
        assert said["completion_tokens"].int_value == MAX_TOKENS
        assert [event.name for event in span.events].count("first_token") == 1
        assert answer.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano
    assert [event.name for event in route.events] == ["accepted", "dispatched", "first_token"]


def test_a_service_that_is_not_traced_does_not_import_opentelemetry() -> None:
    modules = "services.http_gateway.__main__, services.online_router.__main__"
    code = f"import sys, {modules}; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

"""Log lines, metrics and the status port."""

import asyncio
import io
import json
import logging
import socket

import pytest
import structlog

from libs.kernel.errors import ConfigError
from libs.runtime.logs import set_up_logs
from libs.runtime.metrics import Metrics
from libs.runtime.status_server import StatusServer


@pytest.fixture
def log_lines():
    stream = io.StringIO()
    root = logging.getLogger()
    before = (root.handlers, root.level)
    set_up_logs(service="router", stream=stream, node="n1")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers, root.level = before
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_log_line_is_json_with_service_time_and_level(log_lines):
    structlog.get_logger("x").info("request_admitted", request_id="r1", blocks_free=3)
    structlog.get_logger("x").debug("not_heard")
    [line] = log_lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request_admitted",
        "level": "info",
        "service": "router",
        "node": "n1",
        "request_id": "r1",
        "blocks_free": 3,
    }


def test_secrets_never_reach_a_log(log_lines):
    structlog.get_logger("x").warning(
        "hello", password="hunter2", nested={"Api_Key": "hunter2"}, tokens=5
    )
    [line] = log_lines()
    assert "hunter2" not in json.dumps(line)
    assert line["tokens"] == 5


def test_a_librarys_warning_is_a_line_like_any_other(log_lines):
    logging.getLogger("somebody").warning("watch out: %s", "x")
    logging.getLogger("somebody").info("chatter")
    [line] = log_lines()
    assert line["event"] == "watch out: x"
    assert line["level"] == "warning"
    assert line["service"] == "router"


def test_an_unknown_level_is_a_config_error():
    with pytest.raises(ConfigError, match="level"):
        set_up_logs(service="x", level="loud")


def test_metrics_are_exposed_under_the_services_name():
    metrics = Metrics(service="router")
    metrics.counter("requests", "Requests.", {"outcome": "ok"}).inc(2)
    metrics.counter("requests", "Requests.", {"outcome": "failed"}).inc()
    metrics.gauge("streams", "Streams.").set(7)
    metrics.histogram("step_seconds", "Steps.").observe(0.02)
    text = metrics.exposition().decode()
    assert 'tideserve_router_requests_total{outcome="ok"} 2.0' in text
    assert 'tideserve_router_requests_total{outcome="failed"} 1.0' in text
    assert "tideserve_router_streams 7.0" in text
    assert 'tideserve_router_step_seconds_bucket{le="0.025"} 1.0' in text


async def _get(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


def test_the_status_port_answers_probes_and_scrapers():
    async def scenario() -> None:
        is_ready = True
        metrics = Metrics(service="router")
        metrics.gauge("streams", "Streams.").set(7)
        server = StatusServer(metrics=metrics, is_ready=lambda: is_ready)
        await server.start(host="127.0.0.1", port=0)
        port = server.port

        async def status(path: str) -> bytes:
            return (await _get(port, f"GET {path} HTTP/1.1\r\n\r\n".encode())).split(b"\r\n")[0]

        assert await status("/health") == b"HTTP/1.1 200 OK"
        is_ready = False
        assert await status("/health") == b"HTTP/1.1 503 Service Unavailable"
        assert await status("/live?x=1") == b"HTTP/1.1 200 OK"
        assert await status("/other") == b"HTTP/1.1 404 Not Found"
        assert b"tideserve_router_streams 7.0" in await _get(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b" 405 " in await _get(port, b"POST / HTTP/1.1\r\n\r\n")
        assert b" 405 " in await _get(port, b"nonsense\r\n\r\n")
        assert await _get(port, b"x" * 100_000) == b""
        await server.stop()

    asyncio.run(scenario())


def test_a_taken_status_port_is_a_config_error():
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            server = StatusServer(metrics=Metrics(service="x"), is_ready=lambda: True)
            with pytest.raises(ConfigError, match="status port"):
                await server.start(host="127.0.0.1", port=taken.getsockname()[1])

    asyncio.run(scenario())

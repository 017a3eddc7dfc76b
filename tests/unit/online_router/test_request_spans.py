"""A router's span of a request: begun once, ended once, whatever becomes of the request."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.contracts.online import FinishReason
from libs.kernel.core import TimerFired
from libs.runtime.tracing import CONTEXT_HEADER, Tracing
from services.online_router.commands import (
    ForwardSubmission,
    PingRouter,
    PublishReport,
    Reply,
    SendToWorker,
)
from services.online_router.events import RouterEvent
from services.online_router.request_spans import RequestSpans

ADesk = Callable[..., Any]
SENT = (Reply, SendToWorker, ForwardSubmission, PublishReport, PingRouter)


class Traced:
    """A desk whose router's messages are watched, as the shell watches them."""

    def __init__(self, desk: Any, spans: RequestSpans) -> None:
        self.desk = desk
        self.headers: list[Mapping[str, str]] = []
        told = desk.tell

        def tell(event: RouterEvent) -> Any:
            spans.heard(event, {})
            commands = told(event)
            sent = (spans.sending(command) for command in commands if isinstance(command, SENT))
            self.headers += [headers for headers in sent if headers]
            return commands

        desk.tell = tell


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[RequestSpans]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield RequestSpans(Tracing(provider))
    provider.shutdown()


def events_of(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


def test_a_request_that_is_answered_is_one_span(
    a_desk: ADesk, spans: RequestSpans, exporter: InMemorySpanExporter
) -> None:
    traced = Traced(a_desk("w1"), spans)
    desk = traced.desk
    desk.accept()
    desk.submit()  # its client repeats it
    desk.tokens(0)
    desk.commit()
    desk.tokens(1, 3, finish_reason=FinishReason.LENGTH)
    desk.commit()
    [span] = exporter.get_finished_spans()
    assert events_of(span) == ["accepted", "dispatched", "accepted", "first_token"]
    assert dict(span.attributes or {}) == {
        "request_id": "r1",
        "alias": "tiny",
        "completion_tokens": 4,
    }
    [headers] = traced.headers
    assert f"{span.context.span_id:016x}" in headers[CONTEXT_HEADER]


def test_a_refused_request_is_a_span_that_failed(
    a_desk: ADesk, spans: RequestSpans, exporter: InMemorySpanExporter
) -> None:
    Traced(a_desk("w1"), spans).desk.submit(alias="unknown")
    [span] = exporter.get_finished_spans()
    assert span.status.description == "model_not_found"


def test_an_adopted_session_begins_a_trace_when_it_is_dispatched(
    a_desk: ADesk, spans: RequestSpans, exporter: InMemorySpanExporter
) -> None:
    desk = a_desk("w1")
    desk.accept()  # before anybody watched: as a router that takes over knows it
    traced = Traced(desk, spans)
    desk.now_ns += 10**9
    desk.tell(TimerFired(key="sweep", cause_id="t"))
    assert traced.headers
    desk.tokens(0, finish_reason=FinishReason.STOP)
    desk.commit()
    [span] = exporter.get_finished_spans()
    assert (span.attributes or {})["is_adopted"] == 1
    assert span.parent is None

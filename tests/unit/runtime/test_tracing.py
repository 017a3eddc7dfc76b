"""Spans: whose child, ended once, and none of it where no endpoint is set."""

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.runtime.tracing import CONTEXT_HEADER, Tracing, open_tracing


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    yield tracing
    tracing.close()


def test_a_span_is_the_child_of_whose_headers_it_was_given(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    outer = tracing.begin("answer", parent={})
    inner = tracing.begin("route", parent=outer.headers, attributes={"request_id": "r1"})
    inner.end({"completion_tokens": 3})
    outer.end()
    shown_inner, shown_outer = exporter.get_finished_spans()
    assert shown_inner.parent is not None
    assert shown_inner.parent.span_id == shown_outer.context.span_id
    assert shown_inner.context.trace_id == shown_outer.context.trace_id
    assert dict(shown_inner.attributes or {}) == {"request_id": "r1", "completion_tokens": 3}


def test_a_malformed_context_begins_a_trace_of_its_own(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    tracing.begin("answer", parent={CONTEXT_HEADER: "00-nonsense"}).end()
    [shown] = exporter.get_finished_spans()
    assert shown.parent is None


def test_a_span_ends_once_and_keeps_its_first_end(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    span = tracing.begin("answer", parent={})
    span.end(failure="expired")
    span.end()
    span.note("late")
    [shown] = exporter.get_finished_spans()
    assert not shown.status.is_ok
    assert shown.events == ()


def test_without_an_endpoint_nothing_is_opened() -> None:
    async def opened() -> Tracing | None:
        async with open_tracing(service="x", instance="x-1", endpoint=None) as tracing:
            return tracing

    assert asyncio.run(opened()) is None

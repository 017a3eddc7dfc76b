"""A worker's span of a session: from its start to its last token, or to where it was given back."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.contracts.online import FinishReason, SamplingParameters
from libs.contracts.sessions import (
    EndSession,
    RefuseReason,
    SessionRefused,
    SessionSpec,
    StartSession,
)
from libs.contracts.token_step import SessionTokens, TokenStep
from libs.runtime.tracing import CONTEXT_HEADER, Tracing
from services.gpu_worker.commands import SendTokens, SendToRouter
from services.gpu_worker.events import EndReceived, StartReceived
from services.gpu_worker.session_spans import SessionSpans

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {CONTEXT_HEADER: f"00-{TRACE}-b7ad6b7169203331-01"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[SessionSpans]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield SessionSpans(Tracing(provider))
    provider.shutdown()


def a_start(*, session_epoch: int = 1) -> StartReceived:
    spec = SessionSpec(
        request_id="r1",
        alias="tiny",
        prompt_token_ids=(1,),
        max_tokens=9,
        sampling=SamplingParameters(),
    )
    message = StartSession(router_id="router", session_epoch=session_epoch, spec=spec)
    return StartReceived(message=message, cause_id="t")


def some_tokens(first_index: int, *, finish_reason: FinishReason | None = None) -> SendTokens:
    entry = SessionTokens(
        request_id="r1",
        session_epoch=1,
        first_index=first_index,
        token_ids=(5, 6),
        texts=("a", "b"),
        finish_reason=finish_reason,
    )
    step = TokenStep(worker_id="w1", step_id=1, entries=(entry,))
    return SendTokens(router_id="router", step=step, cause_id="t")


def shown(exporter: InMemorySpanExporter) -> list[tuple[dict[str, Any], list[str]]]:
    return [
        (dict(span.attributes or {}), [event.name for event in span.events])
        for span in exporter.get_finished_spans()
    ]


def test_a_session_is_one_span_however_many_tokens_it_has(
    spans: SessionSpans, exporter: InMemorySpanExporter
) -> None:
    spans.heard(a_start(), HEADERS)
    for first_index in (0, 0, 2, 4, 6):  # the first step is sent again
        spans.sending(some_tokens(first_index))
    spans.sending(some_tokens(8, finish_reason=FinishReason.LENGTH))
    [(attributes, events)] = shown(exporter)
    assert attributes == {"request_id": "r1", "session_epoch": 1, "completion_tokens": 10}
    assert events == ["first_token"]
    [span] = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE


def test_a_session_without_a_context_is_not_traced(
    spans: SessionSpans, exporter: InMemorySpanExporter
) -> None:
    spans.heard(a_start(), {})
    spans.sending(some_tokens(0, finish_reason=FinishReason.STOP))
    assert shown(exporter) == []


def test_a_new_epoch_a_refusal_and_an_end_each_end_the_span(
    spans: SessionSpans, exporter: InMemorySpanExporter
) -> None:
    spans.heard(a_start(), HEADERS)
    spans.heard(a_start(session_epoch=2), HEADERS)
    refusal = SessionRefused(
        worker_id="w1", request_id="r1", session_epoch=2, reason=RefuseReason.MOVED
    )
    spans.sending(SendToRouter(router_id="router", message=refusal, cause_id="t"))
    spans.heard(a_start(session_epoch=3), HEADERS)
    end = EndSession(request_id="r1", session_epoch=3)
    spans.heard(EndReceived(message=end, cause_id="t"), {})
    attributes = [attributes for attributes, _ in shown(exporter)]
    assert [entry["session_epoch"] for entry in attributes] == [1, 2, 3]
    assert attributes[1]["given_back"] == "moved"

"""Traces of requests, by OpenTelemetry: one span per service that a request passes, none per token.

Off unless an endpoint is set; opentelemetry is an extra and is not imported before. The context
travels in the header `traceparent` of W3C, on HTTP as on the bus.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from libs.kernel.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Span as SdkSpan
    from opentelemetry.sdk.trace import TracerProvider

CONTEXT_HEADER: Final = "traceparent"
TRACES_PATH: Final = "/v1/traces"
Attributes = Mapping[str, str | int]
NOTHING: Final[Attributes] = {}


class RequestSpan:
    """One service's part of a request. Ends once; what comes after its end is ignored."""

    def __init__(self, span: "SdkSpan") -> None:
        self._span = span
        self._is_first_token_noted = False

    @property
    def headers(self) -> Mapping[str, str]:
        """What makes the next service's span a child of this one."""
        context = self._span.get_span_context()
        flags = int(context.trace_flags)
        return {CONTEXT_HEADER: f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"}

    @property
    def is_ended(self) -> bool:
        """Whether it is over."""
        return self._span.end_time is not None

    def note(self, event: str, attributes: Attributes = NOTHING) -> None:
        """Mark a moment."""
        if not self.is_ended:
            self._span.add_event(event, dict(attributes))

    def note_first_token(self) -> None:
        """Mark when the answer began; what is sent again marks nothing."""
        if not self._is_first_token_noted:
            self._is_first_token_noted = True
            self.note("first_token")

    def end(self, attributes: Attributes = NOTHING, *, failure: str = "") -> None:
        """End it; with a failure the trace is shown as one that went wrong."""
        if self.is_ended:
            return
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes(dict(attributes))
        if failure:
            self._span.set_status(Status(StatusCode.ERROR, failure))
        self._span.end()


class Tracing:
    """Begins spans and sends them, in batches and from a thread of its own."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("tideserve")

    def begin(
        self, name: str, *, parent: Mapping[str, str], attributes: Attributes = NOTHING
    ) -> RequestSpan:
        """Begin a span below the one whose headers these are; a trace of its own without any."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract(parent)
        span = self._tracer.start_span(name, context=context, attributes=dict(attributes))
        return RequestSpan(span)  # type: ignore[arg-type]  # the SDK's tracer makes the SDK's spans

    def close(self) -> None:
        """Send what is left; blocks until the receiver answers, or its time-out."""
        self._provider.shutdown()


@asynccontextmanager
async def open_tracing(
    *, service: str, instance: str, endpoint: str | None
) -> AsyncIterator[Tracing | None]:
    """Trace to this OTLP receiver over HTTP; None where none is set. At the end, send what is left.

    Raises: ConfigError if opentelemetry is not installed.
    """
    if endpoint is None:
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"otlp_endpoint: needs `pip install tideserve[tracing]` ({error})"
        ) from error
    resource = Resource.create({"service.name": service, "service.instance.id": instance})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + TRACES_PATH)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracing = Tracing(provider)
    try:
        yield tracing
    finally:
        await asyncio.to_thread(tracing.close)

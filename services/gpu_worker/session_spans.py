"""The worker's part of each request's trace: from StartSession to the last token, or its leaving.

Watches what the shell hears and sends; decides nothing.
"""

from collections.abc import Callable, Mapping
from typing import Final

from libs.contracts.sessions import SessionRefused
from libs.kernel.bounded import RecentMap
from libs.runtime.bus import BusMessage
from libs.runtime.tracing import CONTEXT_HEADER, NOTHING, Attributes, RequestSpan, Tracing
from services.gpu_worker.commands import SendTokens, SendToRouter, WorkerCommand
from services.gpu_worker.events import EndReceived, StartReceived, WorkerEvent

NAME: Final = "generate"
SPANS_MAX: Final = 8192
"""Open at once; past it the oldest is sent as it is."""


class SessionSpans:
    """The spans of the sessions held, by request; a new epoch ends the former's span."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._open: RecentMap[str, RequestSpan] = RecentMap(entries_max=SPANS_MAX)

    def hearing(
        self, translate: Callable[[BusMessage], WorkerEvent]
    ) -> Callable[[BusMessage], WorkerEvent]:
        """Return the same translation, watched."""

        def watched(message: BusMessage) -> WorkerEvent:
            event = translate(message)
            self.heard(event, message.headers)
            return event

        return watched

    def heard(self, event: WorkerEvent, headers: Mapping[str, str]) -> None:
        """Begin or end the span that the event is about."""
        match event:
            case StartReceived() if CONTEXT_HEADER in headers:
                self._started(event, headers)
            case EndReceived():
                self._end(event.message.request_id)
            case _:
                pass

    def sending(self, command: WorkerCommand) -> None:
        """Note what is sent."""
        match command:
            case SendTokens():
                for entry in command.step.entries:
                    self._sent(entry.request_id, first_index=entry.first_index)
                    if entry.finish_reason is not None:
                        tokens = entry.first_index + len(entry.token_ids)
                        self._end(entry.request_id, {"completion_tokens": tokens})
            case SendToRouter(message=SessionRefused() as refusal):
                self._end(refusal.request_id, {"given_back": refusal.reason.value})
            case _:
                pass

    def _started(self, event: StartReceived, headers: Mapping[str, str]) -> None:
        request_id = event.message.spec.request_id
        self._end(request_id)
        about: Attributes = {"request_id": request_id, "session_epoch": event.message.session_epoch}
        span = self._tracing.begin(NAME, parent=headers, attributes=about)
        evicted = self._open.put(request_id, span)
        if evicted is not None:
            evicted.end()

    def _sent(self, request_id: str, *, first_index: int) -> None:
        span = self._open.get(request_id) if first_index == 0 else None
        if span is not None:
            span.note_first_token()

    def _end(self, request_id: str, attributes: Attributes = NOTHING) -> None:
        span = self._open.pop(request_id)
        if span is not None:
            span.end(attributes)

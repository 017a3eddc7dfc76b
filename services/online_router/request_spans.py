"""The router's part of each request's trace: from the submission to the last word to its client.

Watches what the shell hears and sends; decides nothing. An adopted session begins a trace anew:
the context was known to the dead router alone.
"""

from collections.abc import Mapping
from typing import Final

from libs.contracts.online import (
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    RequestRejected,
    TokensGenerated,
)
from libs.contracts.sessions import StartSession
from libs.kernel.bounded import RecentMap
from libs.runtime.tracing import NOTHING, Attributes, RequestSpan, Tracing
from services.online_router.commands import ForwardSubmission, Reply, SendToWorker
from services.online_router.events import RouterEvent, SubmissionReceived
from services.online_router.wire import Sending

NAME: Final = "route"
SPANS_MAX: Final = 8192
"""Open at once; past it the oldest is sent as it is."""
NO_HEADERS: Final[Mapping[str, str]] = {}


class RequestSpans:
    """The spans of the requests under way."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._open: RecentMap[str, RequestSpan] = RecentMap(entries_max=SPANS_MAX)

    def heard(self, event: RouterEvent | None, headers: Mapping[str, str]) -> None:
        """Begin the span of a submission; a repeat belongs to the span that there is."""
        if not isinstance(event, SubmissionReceived):
            return
        request_id = event.submission.request_id
        if request_id not in self._open:
            self._begin(request_id, headers, {"alias": event.alias})

    def sending(self, command: Sending) -> Mapping[str, str]:
        """Note what is sent, and return the headers that it is to carry."""
        match command:
            case Reply():
                self._replied(command)
            case SendToWorker(message=StartSession() as start):
                request_id = start.spec.request_id
                span = self._open.get(request_id)
                if span is None:
                    span = self._begin(request_id, NO_HEADERS, {"is_adopted": 1})
                span.note("dispatched", _dispatch(command.worker_id, start))
                return span.headers
            case ForwardSubmission():
                span = self._open.pop(command.submission.request_id)
                if span is not None:
                    span.end({"forwarded_to": command.router_id})
                    return span.headers
            case _:
                pass
        return NO_HEADERS

    def _begin(
        self, request_id: str, parent: Mapping[str, str], attributes: Attributes
    ) -> RequestSpan:
        about = {"request_id": request_id, **attributes}
        span = self._tracing.begin(NAME, parent=parent, attributes=about)
        evicted = self._open.put(request_id, span)
        if evicted is not None:
            evicted.end()
        return span

    def _replied(self, command: Reply) -> None:
        message = command.message
        span = self._open.get(message.request_id)
        if span is None:
            return
        match message:
            case RequestAccepted():
                span.note("accepted", {"prompt_tokens": message.prompt_tokens})
            case TokensGenerated(first_index=0):
                span.note_first_token()
            case RequestFinished():
                tokens = {"completion_tokens": message.completion_tokens}
                self._end(message.request_id, tokens)
            case RequestFailed() | RequestRejected():
                self._end(message.request_id, failure=str(message.reason))
            case _:
                pass

    def _end(self, request_id: str, attributes: Attributes = NOTHING, *, failure: str = "") -> None:
        span = self._open.pop(request_id)
        if span is not None:
            span.end(attributes, failure=failure)


def _dispatch(worker_id: str, start: StartSession) -> Attributes:
    return {
        "worker_id": worker_id,
        "session_epoch": start.session_epoch,
        "tokens_before": len(start.generated_token_ids),
    }

"""What a watcher core asks of the world.

PollSource ends in SourceObserved or SourceFailed, ConfirmToSource in EvacuationConfirmed or
ConfirmationFailed. What is sent may be lost: notices are repeated, requests asked again.
"""

from dataclasses import dataclass
from enum import StrEnum

from libs.contracts.preemption import Notice, NoticeAnswer
from libs.contracts.wire import Encoding
from libs.kernel.core import Caused, Operation, SetTimer


@dataclass(frozen=True, slots=True, kw_only=True)
class PollSource(Operation):
    """Ask the source which notices there are. At most one poll of a source is under way."""

    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishNotice(Caused):
    """Publish to `notice(node_id)`."""

    notice: Notice


@dataclass(frozen=True, slots=True, kw_only=True)
class TellWorkers(Caused):
    """Send over the node's socket to every worker, or to the one that has just connected."""

    notices: tuple[Notice, ...]
    connection_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmToSource(Operation):
    """Tell the cloud that it need not wait."""

    source: str
    notice_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest(Caused):
    """Publish to the reply subject of a request, in the encoding of the request."""

    reply_to: str
    encoding: Encoding
    answer: NoticeAnswer


class Outcome(StrEnum):
    """What is worth a line in the log."""

    NOTICE_RAISED = "notice_raised"
    NOTICE_CHANGED = "notice_changed"
    NOTICE_WITHDRAWN = "notice_withdrawn"
    NOTICE_EXPIRED = "notice_expired"
    NOTICE_REFUSED = "notice_refused"
    SOURCE_UNREADABLE = "source_unreadable"
    SOURCE_FAILED = "source_failed"
    SOURCE_RECOVERED = "source_recovered"
    EVACUATION_CONFIRMED = "evacuation_confirmed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOutcome(Caused):
    """Write one line."""

    outcome: Outcome
    source: str
    detail: str
    notice: Notice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopProcess(Caused):
    """End. The core ignores what comes after."""


WatcherCommand = (
    PollSource
    | PublishNotice
    | TellWorkers
    | ConfirmToSource
    | AnswerRequest
    | LogOutcome
    | SetTimer
    | StopProcess
)

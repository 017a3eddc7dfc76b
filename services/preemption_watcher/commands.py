"""What a watcher core asks of the world.

PollSource ends in SourceObserved or SourceFailed, ConfirmToSource in EvacuationConfirmed or
ConfirmationFailed. What is sent may be lost: notices are repeated, requests asked again.
"""

from dataclasses import dataclass
from enum import StrEnum

from libs.contracts.preemption import Notice, NoticeAnswer
from libs.contracts.wire import Encoding
from libs.kernel.core import SetTimer


@dataclass(frozen=True, slots=True, kw_only=True)
class PollSource:
    """Ask the source which notices there are. At most one poll of a source is under way."""

    op_id: str
    source: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishNotice:
    """Publish to `notice(node_id)`."""

    notice: Notice
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TellWorkers:
    """Send over the node's socket to every worker, or to the one that has just connected."""

    notices: tuple[Notice, ...]
    connection_id: int | None
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmToSource:
    """Tell the cloud that it need not wait."""

    op_id: str
    source: str
    notice_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """Publish to the reply subject of a request, in the encoding of the request."""

    reply_to: str
    encoding: Encoding
    answer: NoticeAnswer
    cause_id: str


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
class LogOutcome:
    """Write one line."""

    outcome: Outcome
    source: str
    detail: str
    cause_id: str
    notice: Notice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopProcess:
    """End. The core ignores what comes after."""

    cause_id: str


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

"""What happens to a watcher."""

from dataclasses import dataclass

from libs.contracts.preemption import NoticeRequest
from libs.contracts.wire import Encoding
from libs.kernel.core import TimerFired
from services.preemption_watcher.readings import Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherStarted:
    """Sources and socket are there. Comes once, first."""

    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceObserved:
    """The poll with this op_id brought an answer, be it that there is no notice."""

    op_id: str
    source: str
    observation: Observation
    now_unix_ns: int
    """The wall clock at the end of the poll; turns the source's instants into our own time."""
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFailed:
    """The poll with this op_id brought nothing: the source does not answer, or refuses."""

    op_id: str
    source: str
    reason: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Where an answer goes, and the encoding in which the request came."""

    reply_to: str | None
    """None: nobody waits for an answer."""
    encoding: Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReceived:
    """Somebody asks for something."""

    request: NoticeRequest
    asker: Asker
    now_unix_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestUnreadable:
    """Somebody sent something that is no request."""

    asker: Asker
    reason: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvacuationConfirmed:
    """The cloud has taken the word of ConfirmToSource with this op_id."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmationFailed:
    """The cloud could not be told."""

    op_id: str
    reason: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConnected:
    """A worker of this node has opened the socket and knows nothing yet."""

    connection_id: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """The process was told to end."""

    cause_id: str


WatcherEvent = (
    WatcherStarted
    | SourceObserved
    | SourceFailed
    | RequestReceived
    | RequestUnreadable
    | EvacuationConfirmed
    | ConfirmationFailed
    | WorkerConnected
    | StopRequested
    | TimerFired
)

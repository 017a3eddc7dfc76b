"""What happens to a watcher."""

from dataclasses import dataclass

from libs.contracts.preemption import NoticeRequest
from libs.contracts.wire import Encoding
from libs.kernel.core import Caused, Operation, TimerFired
from services.preemption_watcher.readings import Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherStarted(Caused):
    """Sources and socket are there. Comes once, first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceObserved(Operation):
    """The poll with this op_id brought an answer, be it that there is no notice."""

    source: str
    observation: Observation
    now_unix_ns: int
    """The wall clock at the end of the poll; turns the source's instants into our own time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFailed(Operation):
    """The poll with this op_id brought nothing: the source does not answer, or refuses."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Where an answer goes, and the encoding in which the request came."""

    reply_to: str | None
    """None: nobody waits for an answer."""
    encoding: Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReceived(Caused):
    """Somebody asks for something."""

    request: NoticeRequest
    asker: Asker
    now_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestUnreadable(Caused):
    """Somebody sent something that is no request."""

    asker: Asker
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvacuationConfirmed(Operation):
    """The cloud has taken the word of ConfirmToSource with this op_id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmationFailed(Operation):
    """The cloud could not be told."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConnected(Caused):
    """A worker of this node has opened the socket and knows nothing yet."""

    connection_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(Caused):
    """The process was told to end."""


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

"""What can happen to a planner."""

from dataclasses import dataclass
from typing import TypeAlias

from libs.contracts.placement import PinShape, Placement
from libs.contracts.preemption import NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import OfflineQueueReport, PlannerReport, RouterReport, WorkerReport
from libs.contracts.wire import Encoding
from libs.kernel.core import Caused, Operation, TimerFired


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerStarted(Caused):
    """The process is up and listens. Comes once, first."""

    now_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReported(Caused):
    """A worker said how it is."""

    report: WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterReported(Caused):
    """A router said how many requests it has accepted."""

    report: RouterReport


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReported(Caused):
    """An offline queue said how it is."""

    report: OfflineQueueReport


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerReported(Caused):
    """A planner said how it is; our own is the echo that lets silence count."""

    report: PlannerReport
    received_at_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeReceived(Caused):
    """A node will be taken away; repeated while it holds."""

    notice: PreemptionNotice


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawalReceived(Caused):
    """It will not."""

    withdrawal: NoticeWithdrawn


@dataclass(frozen=True, slots=True, kw_only=True)
class PinRequested(Caused):
    """An operator wants this shape, or none in particular."""

    request: PinShape
    reply_to: str
    encoding: Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRead(Operation):
    """The committed placement; `placement` is None if there is none, or none that can be read."""

    placement: Placement | None
    revision: int | None
    """Of the key, for compare-and-set; None: the key does not exist."""
    is_unreadable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementCommitted(Operation):
    """What was to be committed is."""

    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementConflict(Operation):
    """Somebody else has written since we read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUnavailable(Operation):
    """The store did not answer; a write may or may not have been made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUnreachable(Caused):
    """The broker found nobody listening on the subject of this worker."""

    worker_id: str


PlannerEvent: TypeAlias = (
    PlannerStarted
    | TimerFired
    | WorkerReported
    | WorkerUnreachable
    | RouterReported
    | QueueReported
    | PlannerReported
    | NoticeReceived
    | WithdrawalReceived
    | PinRequested
    | PlacementRead
    | PlacementCommitted
    | PlacementConflict
    | StoreUnavailable
)

"""What can happen to a planner."""

from dataclasses import dataclass
from typing import TypeAlias

from libs.contracts.placement import PinShape, Placement
from libs.contracts.preemption import NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import OfflineQueueReport, PlannerReport, RouterReport, WorkerReport
from libs.contracts.wire import Encoding
from libs.kernel.core import TimerFired


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerStarted:
    """The process is up and listens. Comes once, first."""

    now_unix_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReported:
    """A worker said how it is."""

    report: WorkerReport
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterReported:
    """A router said how many requests it has accepted."""

    report: RouterReport
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReported:
    """An offline queue said how it is."""

    report: OfflineQueueReport
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerReported:
    """A planner said how it is; our own is the echo that lets silence count."""

    report: PlannerReport
    received_at_unix_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeReceived:
    """A node will be taken away; repeated while it holds."""

    notice: PreemptionNotice
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawalReceived:
    """It will not."""

    withdrawal: NoticeWithdrawn
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PinRequested:
    """An operator wants this shape, or none in particular."""

    request: PinShape
    reply_to: str
    encoding: Encoding
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRead:
    """The committed placement; `placement` is None if there is none, or none that can be read."""

    op_id: str
    placement: Placement | None
    revision: int | None
    """Of the key, for compare-and-set; None: the key does not exist."""
    is_unreadable: bool = False
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementCommitted:
    """What was to be committed is."""

    op_id: str
    revision: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementConflict:
    """Somebody else has written since we read."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUnavailable:
    """The store did not answer; a write may or may not have been made."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUnreachable:
    """The broker found nobody listening on the subject of this worker."""

    worker_id: str
    cause_id: str


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

"""Everything that can happen to a migrator; the closed union that its core handles."""

from dataclasses import dataclass

from libs.contracts.handover import ToMigrator
from libs.contracts.handover_record import HandoverRecord
from libs.contracts.placement import Placement
from libs.contracts.reports import MigratorReport, WorkerReport
from libs.kernel.core import TimerFired


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratorStarted:
    """The process is connected and ready; comes first and once."""

    now_unix_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReported:
    """A worker's heartbeat."""

    report: WorkerReport
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratorReported:
    """A migrator's heartbeat; our own is the echo that lets silence count."""

    report: MigratorReport
    now_unix_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementAnnounced:
    """A planner says that it has committed a placement; the bucket knows whether that is so."""

    plan_revision: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRead:
    """Outcome of ReadPlacement; None: nothing was ever planned."""

    op_id: str
    placement: Placement | None
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementUnavailable:
    """Outcome of ReadPlacement: not now, or not readable."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRead:
    """Outcome of ReadRecord; None with revision 0: there is none yet."""

    op_id: str
    record: HandoverRecord | None
    revision: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordStored:
    """Outcome of StoreRecord: it stands there now, at this revision."""

    op_id: str
    revision: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordConflict:
    """Outcome of StoreRecord: something else stands there."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordUnavailable:
    """Outcome of StoreRecord or ReadRecord: nobody knows; a store may have happened, or may yet."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAnswered:
    """A worker says what became of an order."""

    answer: ToMigrator
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUnreachable:
    """The broker found nobody listening on the subject of this worker."""

    worker_id: str
    cause_id: str


MigratorEvent = (
    MigratorStarted
    | TimerFired
    | WorkerReported
    | WorkerUnreachable
    | MigratorReported
    | PlacementAnnounced
    | PlacementRead
    | PlacementUnavailable
    | RecordRead
    | RecordStored
    | RecordConflict
    | RecordUnavailable
    | WorkerAnswered
)

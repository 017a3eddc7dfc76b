"""Everything that can happen to a migrator; the closed union that its core handles."""

from dataclasses import dataclass

from libs.contracts.handover import ToMigrator
from libs.contracts.handover_record import HandoverRecord
from libs.contracts.placement import Placement
from libs.contracts.reports import MigratorReport, WorkerReport
from libs.kernel.core import Caused, Operation, TimerFired


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratorStarted(Caused):
    """The process is connected and ready; comes first and once."""

    now_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReported(Caused):
    """A worker's heartbeat."""

    report: WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratorReported(Caused):
    """A migrator's heartbeat; our own is the echo that lets silence count."""

    report: MigratorReport
    now_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementAnnounced(Caused):
    """A planner says that it has committed a placement; the bucket knows whether that is so."""

    plan_revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRead(Operation):
    """Outcome of ReadPlacement; None: nothing was ever planned."""

    placement: Placement | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementUnavailable(Operation):
    """Outcome of ReadPlacement: not now, or not readable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRead(Operation):
    """Outcome of ReadRecord; None with revision 0: there is none yet."""

    record: HandoverRecord | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordStored(Operation):
    """Outcome of StoreRecord: it stands there now, at this revision."""

    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordConflict(Operation):
    """Outcome of StoreRecord: something else stands there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordUnavailable(Operation):
    """Outcome of StoreRecord or ReadRecord: nobody knows; a store may have happened, or may yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAnswered(Caused):
    """A worker says what became of an order."""

    answer: ToMigrator


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUnreachable(Caused):
    """The broker found nobody listening on the subject of this worker."""

    worker_id: str


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

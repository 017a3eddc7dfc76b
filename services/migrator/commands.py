"""Everything a migrator can want done; the closed union that its shell interprets.

Commands with an `op_id` of their own end in exactly one outcome event that carries it. An order to
a worker may be lost, and is repeated until the worker has answered.
"""

from dataclasses import dataclass

from libs.contracts.handover import ToShape
from libs.contracts.handover_record import HandoverRecord, HandoverState
from libs.contracts.placement import Policy
from libs.contracts.reports import MigratorReport
from libs.kernel.core import Caused, Operation, SetTimer


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Caused):
    """One line of the log: a hand-over enters a state, or a record changes its owner."""

    name: str
    handover_id: str = ""
    state: HandoverState | None = None
    policy: Policy | None = None
    plan_revision: int = 0
    source_replica_ids: tuple[str, ...] = ()
    target_replica_ids: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecord(Operation):
    """Write the record if its key has this revision (0: is absent).

    -> RecordStored | RecordConflict | RecordUnavailable.
    """

    record: HandoverRecord
    revision: int
    decisions: tuple[Decision, ...] = ()
    """What becomes true with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRecord(Operation):
    """Read the record and its revision -> RecordRead | RecordUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlacement(Operation):
    """Read the committed placement -> PlacementRead | PlacementUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToWorker(Caused):
    """Publish an order to `worker_shape(worker_id)`."""

    worker_id: str
    message: ToShape


@dataclass(frozen=True, slots=True, kw_only=True)
class PingWorker(Caused):
    """Ask the broker whether anybody listens for the worker; nobody becomes WorkerUnreachable."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport(Caused):
    """Publish our heartbeat."""

    report: MigratorReport


MigratorCommand = (
    StoreRecord | ReadRecord | ReadPlacement | SendToWorker | PingWorker | PublishReport | SetTimer
)

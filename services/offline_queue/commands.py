"""What the queue's core asks for."""

from dataclasses import dataclass
from typing import TypeAlias

from libs.contracts.reports import OfflineQueueReport
from libs.kernel.core import SetTimer
from services.offline_queue.records import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseParts:
    """Lease parts of a batch; ends in PartsLeased."""

    batch_id: str
    count: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseJobs:
    """Lease jobs; ends in JobsLeased."""

    count: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartLine:
    """Have the fleet answer a line and store the answer; ends in LineStored or LinePutOff."""

    part_key: str
    line: int
    attempt: int
    """0 at first; each has a request id of its own."""
    priority: int
    expires_after_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailLine:
    """Store that a line ends without a response; ends in LineStored or LinePutOff."""

    part_key: str
    line: int
    code: str
    message: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgePart:
    """All of its lines are stored; ends in PartAcknowledged."""

    part_key: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepPart:
    """Renew the lease; ends in PartKept, or in nothing where the broker cannot be told."""

    part_key: str
    asked_at_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DropPart:
    """Nobody wants it any more: end its lines that run. No outcome; late ones are ignored."""

    part_key: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyBatch:
    """Count what the streams hold of a batch; ends in BatchSurveyed unless the broker is away."""

    batch_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskForTask:
    """Have some queue look at the batch. No outcome: the next survey shows it."""

    batch_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeBatch:
    """Change the record by compare-and-set. No outcome but BatchRead, by the watch."""

    batch_id: str
    change: Change
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """Tell everybody about this queue."""

    report: OfflineQueueReport
    cause_id: str


QueueCommand: TypeAlias = (
    LeaseParts
    | LeaseJobs
    | StartLine
    | FailLine
    | AcknowledgePart
    | KeepPart
    | DropPart
    | SurveyBatch
    | AskForTask
    | ChangeBatch
    | PublishReport
    | SetTimer
)

"""What the queue's core asks for."""

from dataclasses import dataclass
from typing import TypeAlias

from libs.contracts.reports import OfflineQueueReport
from libs.kernel.core import Caused, SetTimer
from services.offline_queue.records import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseParts(Caused):
    """Lease parts of a batch; ends in PartsLeased."""

    batch_id: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseJobs(Caused):
    """Lease jobs; ends in JobsLeased."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartLine(Caused):
    """Have the fleet answer a line and store the answer; ends in LineStored or LinePutOff."""

    part_key: str
    line: int
    attempt: int
    """0 at first; each has a request id of its own."""
    priority: int
    expires_after_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailLine(Caused):
    """Store that a line ends without a response; ends in LineStored or LinePutOff."""

    part_key: str
    line: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgePart(Caused):
    """All of its lines are stored; ends in PartAcknowledged."""

    part_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepPart(Caused):
    """Renew the lease; ends in PartKept, or in nothing where the broker cannot be told."""

    part_key: str
    asked_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropPart(Caused):
    """Nobody wants it any more: end its lines that run. No outcome; late ones are ignored."""

    part_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyBatch(Caused):
    """Count what the streams hold of a batch; ends in BatchSurveyed unless the broker is away."""

    batch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskForTask(Caused):
    """Have some queue look at the batch. No outcome: the next survey shows it."""

    batch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeBatch(Caused):
    """Change the record by compare-and-set. No outcome but BatchRead, by the watch."""

    batch_id: str
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport(Caused):
    """Tell everybody about this queue."""

    report: OfflineQueueReport


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

"""What the queue's core is told."""

from dataclasses import dataclass
from typing import TypeAlias

from libs.contracts.batches import BatchRecord
from libs.contracts.reports import OfflineQueueReport, WorkerReport
from libs.kernel.core import Caused, TimerFired


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStarted(Caused):
    """Comes first and once."""

    now_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStopping(Caused):
    """The process is about to end: take up nothing more; what is held goes to other queues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRead(Caused):
    """A batch is like this now."""

    record: BatchRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchForgotten(Caused):
    """The record of a batch was deleted."""

    batch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReported(Caused):
    """A worker's report."""

    report: WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReported(Caused):
    """A queue's report; our own comes back, too."""

    report: OfflineQueueReport


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingLine:
    """One line that is not answered yet."""

    line: int
    prefix: str
    """How its prompt begins."""
    prompt_tokens: int
    """Predicted, as is what follows."""
    answer_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedPart:
    """A part that is ours until its lease runs out; lines that are stored already are left out."""

    part_key: str
    source_id: str
    lines: tuple[WaitingLine, ...]
    delivery_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedJob:
    """A job that is ours: a part with one line and a deadline of its own."""

    part: LeasedPart
    alias: str
    tenant: str
    deadline_at_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsLeased(Caused):
    """How a lease of parts ended; empty if there were none, or the broker was away."""

    source_id: str
    parts: tuple[LeasedPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsLeased(Caused):
    """How a lease of jobs ended; likewise."""

    jobs: tuple[LeasedJob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineStored(Caused):
    """The line has ended, and how it did is stored durably."""

    part_key: str
    line: int
    is_completed: bool
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePutOff(Caused):
    """The line did not end; nothing is stored."""

    part_key: str
    line: int
    is_congestion: bool = False
    """Whether the fleet has no room: fewer lines should run."""
    failure: str = ""
    """Why it failed in the fleet, if it did: then an attempt is used up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartAcknowledged(Caused):
    """How an acknowledgement ended."""

    part_key: str
    is_done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PartKept(Caused):
    """The broker was told to renew the lease of a part, if it was ours still."""

    part_key: str
    asked_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSurveyed(Caused):
    """What the streams hold of a batch."""

    batch_id: str
    parts_left: int
    tasks_left: int
    completed: int
    failed: int


QueueEvent: TypeAlias = (
    QueueStarted
    | QueueStopping
    | TimerFired
    | BatchRead
    | BatchForgotten
    | WorkerReported
    | QueueReported
    | PartsLeased
    | JobsLeased
    | LineStored
    | LinePutOff
    | PartAcknowledged
    | PartKept
    | BatchSurveyed
)

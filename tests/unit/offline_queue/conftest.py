"""A core, what it is told, and what it answers; invariants hold after every event."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from libs.contracts.batches import BatchCounts, BatchRecord, BatchStatus
from libs.contracts.reports import WorkerReport
from libs.kernel.core import TimerFired
from libs.kernel.units import NS_PER_S
from services.offline_queue.commands import (
    KeepPart,
    PublishReport,
    QueueCommand,
    StartLine,
)
from services.offline_queue.core import QueueCore
from services.offline_queue.events import (
    BatchRead,
    JobsLeased,
    LeasedPart,
    LinePutOff,
    LineStored,
    PartAcknowledged,
    PartKept,
    PartsLeased,
    QueueEvent,
    QueueReported,
    QueueStarted,
    WaitingLine,
    WorkerReported,
)
from services.offline_queue.options import QueueOptions

UNIX_S = 1_800_000_000
CommandT = TypeVar("CommandT")


def a_record(batch_id: str = "batch_00000001", **fields: object) -> BatchRecord:
    return BatchRecord(
        **{
            "batch_id": batch_id,
            "input_file_id": "file-00000001",
            "endpoint": "/v1/completions",
            "alias": "tiny",
            "status": BatchStatus.IN_PROGRESS,
            "counts": BatchCounts(total=100),
            "tokens_predicted": 10_000,
            "deadline_at_unix_s": UNIX_S + 86_400,
            "created_at_unix_s": UNIX_S,
            **fields,
        }  # type: ignore[arg-type]
    )


def a_worker(worker_id: str = "w1", **fields: object) -> WorkerReport:
    return WorkerReport(
        **{
            "worker_id": worker_id,
            "beat": 0,
            "alias": "tiny",
            "process_id": 1,
            "context_tokens_max": 2048,
            "vocabulary_size": 1000,
            "block_tokens": 16,
            "blocks_total": 10_000,
            "blocks_free": 10_000,
            "sessions_running": 0,
            "sessions_waiting": 0,
            "tokens_waiting": 0,
            "tokens_generated": 0,
            "steps": 0,
            "step_ms_recent": 1.0,
            **fields,
        }  # type: ignore[arg-type]
    )


class Desk:
    """One core and the commands of the last event."""

    def __init__(self, **options: object) -> None:
        self.options = QueueOptions(queue_id="queue-1", **options)  # type: ignore[arg-type]
        self.core = QueueCore(self.options)
        self.now_ns = 0
        self.commands: Sequence[QueueCommand] = ()
        self.tell(QueueStarted(now_unix_ns=UNIX_S * NS_PER_S, cause_id="t"))

    def tell(self, event: QueueEvent) -> Sequence[QueueCommand]:
        self.commands = self.core.handle(event, now_ns=self.now_ns)
        self.core.check_invariants()
        return self.commands

    def all(self, kind: type[CommandT]) -> list[CommandT]:
        return [command for command in self.commands if isinstance(command, kind)]

    def only(self, kind: type[CommandT]) -> CommandT:
        (command,) = self.all(kind)
        return command

    def started(self) -> list[tuple[str, int]]:
        return [(start.part_key, start.line) for start in self.all(StartLine)]

    def pass_seconds(self, count: float = 1.0) -> None:
        self.now_ns += round(count * NS_PER_S)

    def fire(self, key: str) -> Sequence[QueueCommand]:
        return self.tell(TimerFired(key=key, cause_id="t"))

    def keep(self) -> None:
        """Renew what is held; the broker hears it."""
        self.fire("keep")
        for asked in self.all(KeepPart):
            kept = PartKept(part_key=asked.part_key, asked_at_ns=asked.asked_at_ns, cause_id="t")
            self.tell(kept)

    def hear(self, *reports: WorkerReport) -> None:
        for report in reports:
            self.tell(WorkerReported(report=report, cause_id="t"))

    def read(self, record: BatchRecord) -> Sequence[QueueCommand]:
        return self.tell(BatchRead(record=record, cause_id="t"))

    def leased(
        self,
        lines: Sequence[int],
        *,
        batch_id: str = "batch_00000001",
        part: int = 0,
        prefixes: Sequence[str] = (),
        delivery_count: int = 1,
    ) -> Sequence[QueueCommand]:
        waiting = tuple(
            WaitingLine(
                line=line,
                prefix=prefixes[index] if prefixes else f"{line:06d}",
                prompt_tokens=10,
                answer_tokens=10,
            )
            for index, line in enumerate(lines)
        )
        leased = LeasedPart(
            part_key=f"{batch_id}.{part}",
            source_id=batch_id,
            lines=waiting,
            delivery_count=delivery_count,
        )
        return self.tell(PartsLeased(source_id=batch_id, parts=(leased,), cause_id="t"))

    def stored(self, start: StartLine | tuple[str, int], *, is_completed: bool = True) -> None:
        part_key, line = start if isinstance(start, tuple) else (start.part_key, start.line)
        self.tell(
            LineStored(
                part_key=part_key,
                line=line,
                is_completed=is_completed,
                prompt_tokens=10,
                answer_tokens=10,
                cause_id="t",
            )
        )

    def put_off(self, start: tuple[str, int], **fields: object) -> None:
        part_key, line = start
        self.tell(
            LinePutOff(part_key=part_key, line=line, cause_id="t", **fields)  # type: ignore[arg-type]
        )

    def acknowledged(self, part_key: str, *, is_done: bool = True) -> None:
        self.tell(PartAcknowledged(part_key=part_key, is_done=is_done, cause_id="t"))

    def echo(self) -> None:
        """Report, and hear it."""
        self.fire("report")
        report = self.only(PublishReport).report
        self.tell(QueueReported(report=report, cause_id="t"))


@pytest.fixture
def a_desk() -> Callable[..., Desk]:
    """Cores with one worker that has room, and one batch in progress."""

    def build(*, workers: int = 1, has_batch: bool = True, **options: object) -> Desk:
        desk = Desk(**options)
        desk.tell(JobsLeased(jobs=(), cause_id="t"))
        for number in range(workers):
            desk.hear(a_worker(f"w{number + 1}"))
        if has_batch:
            desk.read(a_record())
        return desk

    return build

"""The offline queue's core and the engine's scheduler under virtual time, with what lies between.

Batches are validated already. Lines are leased in parts, asked for, stored and acknowledged as the
shell does it; a batch whose core asks for a clerk ends as the clerk would have it. Steps take as
long as the latency model says, and online sequences come beside the lines.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from libs.contracts.batches import BatchCounts, BatchRecord, BatchStatus
from libs.contracts.reports import WorkerReport
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.scheduling.coserve import LATENCY_ASSUMED
from libs.engine.simulated_runner import SimulatedRunner
from libs.engine.steps import StepPlan
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.latency_model import StepWork
from libs.sim.world import World
from services.offline_queue.commands import (
    AcknowledgePart,
    AskForTask,
    ChangeBatch,
    DropPart,
    FailLine,
    KeepPart,
    LeaseJobs,
    LeaseParts,
    PublishReport,
    QueueCommand,
    StartLine,
    SurveyBatch,
)
from services.offline_queue.core import QueueCore
from services.offline_queue.events import (
    BatchRead,
    BatchSurveyed,
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
from services.offline_queue.records import Finalized, FinalizingBegun, changed

UNIX_S: Final = 1_800_000_000
ALIAS: Final = "tide"
VOCABULARY: Final = 1_000
PART_LINES: Final = 64
PROMPT_TOKENS: Final = 32
ANSWER_TOKENS: Final = 32
ROUND_TRIP_NS: Final = 5 * NS_PER_MS
REPORT_NS: Final = 1 * NS_PER_S


@dataclass
class Batch:
    """A batch, the parts of it that nobody has, and when each of its lines was stored."""

    record: BatchRecord
    waiting: list[range]
    taken: dict[str, range] = field(default_factory=dict)
    stored_at_s: dict[int, float] = field(default_factory=dict)

    @property
    def parts_left(self) -> int:
        return len(self.waiting) + len(self.taken)


class OfflineWorld:
    """One queue, one engine, virtual time from 0."""

    def __init__(self, *, lines_running_max: int = 64) -> None:
        self.world = World(seed=1, actions_max=5_000_000)
        self.queue = QueueCore(
            QueueOptions(queue_id="queue-1", lines_running_max=lines_running_max)
        )
        self.engine = SchedulerOptions(
            step_tokens_max=256,
            sequences_max=64,
            block_tokens=16,
            blocks_total=1_024,
            context_tokens_max=512,
            eos_token_ids=frozenset(),
            layers=8,
        )
        self.scheduler = Scheduler(self.engine)
        self.runner = SimulatedRunner(vocabulary_size=VOCABULARY, eos_token_ids=frozenset())
        self.batches: dict[str, Batch] = {}
        self.tokens_harvested = 0
        self._asked: dict[str, StartLine] = {}
        self._is_stepping = False
        self._timers: dict[str, int] = {}
        self._reports = 0
        self._online = 0
        self.tell(QueueStarted(now_unix_ns=UNIX_S * NS_PER_S, cause_id="start"))
        self._report_worker()

    @property
    def now_s(self) -> float:
        return self.world.now_ns / NS_PER_S

    def submit(self, *, lines: int, due_s: int) -> Batch:
        """Add a batch that is due at this instant."""
        number = f"{len(self.batches):08d}"
        batch_id = f"batch_{number}"
        now_unix_s = UNIX_S + int(self.now_s)
        record = BatchRecord(
            batch_id=batch_id,
            input_file_id=f"file-{number}",
            endpoint="/v1/completions",
            alias=ALIAS,
            status=BatchStatus.IN_PROGRESS,
            counts=BatchCounts(total=lines),
            tokens_predicted=lines * (PROMPT_TOKENS + ANSWER_TOKENS),
            deadline_at_unix_s=UNIX_S + due_s,
            created_at_unix_s=now_unix_s,
        )
        parts = [range(n, min(n + PART_LINES, lines)) for n in range(0, lines, PART_LINES)]
        batch = self.batches[batch_id] = Batch(record=record, waiting=parts)
        self.tell(BatchRead(record=record, cause_id=batch_id))
        return batch

    def send_online(self, *, every_ns: int) -> None:
        """Have an online sequence arrive again and again."""
        self._online += 1
        self._add(f"online-{self._online}", priority=0)
        self.world.after(every_ns, lambda: self.send_online(every_ns=every_ns))

    def run(self, *, until_s: int) -> None:
        """Let it all happen until every batch is final, and a little longer."""
        self.world.run(until_ns=until_s * NS_PER_S, is_done=self._is_over)
        after_ns = self.world.now_ns + 2 * ROUND_TRIP_NS
        self.world.run(until_ns=after_ns, is_done=lambda: False)

    def _is_over(self) -> bool:
        return all(batch.record.status.is_final for batch in self.batches.values())

    # ------------------------------------------------------------------ the queue

    def tell(self, event: QueueEvent) -> None:
        for command in self.queue.handle(event, now_ns=self.world.now_ns):
            self._carry_out(command)
        self.queue.check_invariants()

    def _answer(self, event: QueueEvent) -> None:
        self.world.after(ROUND_TRIP_NS, lambda: self.tell(event))

    def _carry_out(self, command: QueueCommand) -> None:
        match command:
            case SetTimer(key=key, after_ns=after_ns):
                self._set_timer(key, after_ns)
            case LeaseParts(batch_id=batch_id):
                self._answer(PartsLeased(source_id=batch_id, parts=self._lease(batch_id), **BY))
            case LeaseJobs():
                self._answer(JobsLeased(jobs=(), **BY))
            case KeepPart(part_key=part_key, asked_at_ns=asked_at_ns):
                self._answer(PartKept(part_key=part_key, asked_at_ns=asked_at_ns, **BY))
            case StartLine():
                self._start(command)
            case FailLine(part_key=part_key, line=line):
                raise AssertionError(f"line {line} of {part_key} is failed")
            case AcknowledgePart(part_key=part_key):
                self.batches[_batch_of(part_key)].taken.pop(part_key)
                self._answer(PartAcknowledged(part_key=part_key, is_done=True, **BY))
            case DropPart(part_key=part_key):
                self._drop(part_key)
            case SurveyBatch(batch_id=batch_id):
                self._answer(self._survey(batch_id))
            case AskForTask(batch_id=batch_id):
                self.world.after(ROUND_TRIP_NS, lambda: self._finalize(batch_id))
            case ChangeBatch(batch_id=batch_id, change=change):
                batch = self.batches[batch_id]
                self._write(changed(batch.record, change, now_unix_s=self._unix_s()))
            case PublishReport(report=report):
                seen = report.model_copy(update={"tokens_harvested": self.tokens_harvested})
                self._answer(QueueReported(report=seen, **BY))

    def _set_timer(self, key: str, after_ns: int) -> None:
        number = self._timers[key] = self._timers.get(key, 0) + 1

        def fire() -> None:
            if self._timers[key] == number:
                self.tell(TimerFired(key=key, **BY))

        self.world.after(after_ns, fire)

    def _lease(self, batch_id: str) -> tuple[LeasedPart, ...]:
        batch = self.batches[batch_id]
        if not batch.waiting or batch.record.status.is_final:
            return ()
        lines = batch.waiting.pop(0)
        part_key = f"{batch_id}.{lines.start // PART_LINES}"
        batch.taken[part_key] = lines
        waiting = tuple(
            WaitingLine(
                line=line,
                prefix=f"{line:06d}",
                prompt_tokens=PROMPT_TOKENS,
                answer_tokens=ANSWER_TOKENS,
            )
            for line in lines
        )
        leased = LeasedPart(part_key=part_key, source_id=batch_id, lines=waiting, delivery_count=1)
        return (leased,)

    def _drop(self, part_key: str) -> None:
        for sequence_id, start in list(self._asked.items()):
            if start.part_key == part_key:
                self._put_off(sequence_id)

    def _survey(self, batch_id: str) -> BatchSurveyed:
        batch = self.batches[batch_id]
        return BatchSurveyed(
            batch_id=batch_id,
            parts_left=batch.parts_left,
            tasks_left=0,
            completed=len(batch.stored_at_s),
            failed=0,
            **BY,
        )

    def _finalize(self, batch_id: str) -> None:
        """Do what a clerk does: the files say what is stored, at this instant."""
        batch = self.batches[batch_id]
        is_late = self._unix_s() >= batch.record.deadline_at_unix_s
        if batch.record.status.is_final or (batch.parts_left and not is_late):
            return
        total = batch.record.counts.total
        finalized = Finalized(
            counts=BatchCounts(total=total, completed=len(batch.stored_at_s)),
            tokens_prompt=0,
            tokens_generated=0,
            output_file_id=None,
            error_file_id=None,
        )
        for change in (FinalizingBegun(), finalized):
            self._write(changed(batch.record, change, now_unix_s=self._unix_s()))

    def _write(self, record: BatchRecord) -> None:
        self.batches[record.batch_id].record = record
        self._answer(BatchRead(record=record, **BY))

    def _unix_s(self) -> int:
        return UNIX_S + int(self.now_s)

    # ------------------------------------------------------------------ the fleet

    def _start(self, start: StartLine) -> None:
        sequence_id = f"{start.part_key}/{start.line}"
        self._asked[sequence_id] = start
        self.world.after(start.expires_after_ns, lambda: self._put_off(sequence_id))
        self._add(sequence_id, priority=start.priority)

    def _put_off(self, sequence_id: str) -> None:
        start = self._asked.pop(sequence_id, None)
        if start is not None:
            self.scheduler.abort(sequence_id)
            self._answer(LinePutOff(part_key=start.part_key, line=start.line, **BY))

    def _add(self, sequence_id: str, *, priority: int) -> None:
        # Every prompt its own: what is cached would make lines free.
        prompt = tuple(hash_of(sequence_id, position) for position in range(PROMPT_TOKENS))
        request = SequenceRequest(
            sequence_id=sequence_id,
            prompt_token_ids=prompt,
            sampling=SamplingOptions(),
            stop=StopOptions(max_tokens=ANSWER_TOKENS, ignore_eos=True),
            priority=priority,
        )
        self.scheduler.add(request, now_ns=self.world.now_ns)
        self._step()

    def _step(self) -> None:
        if self._is_stepping:
            return
        plan = self.scheduler.schedule(now_ns=self.world.now_ns)
        if plan is None:
            return
        self._is_stepping = True
        self.world.after(LATENCY_ASSUMED.predict_ns(work_of(plan)), self._ended(plan))

    def _ended(self, plan: StepPlan) -> Callable[[], None]:
        def end() -> None:
            self._is_stepping = False
            result = self.runner.run(plan)
            for token in self.scheduler.account(result, now_ns=self.world.now_ns):
                self._took(token.sequence_id, is_last=token.finish_reason is not None)
            self._step()

        return end

    def _took(self, sequence_id: str, *, is_last: bool) -> None:
        start = self._asked.get(sequence_id)
        if start is None:
            return
        self.tokens_harvested += 1
        if is_last:
            del self._asked[sequence_id]
            self.tokens_harvested += PROMPT_TOKENS
            batch = self.batches[_batch_of(start.part_key)]
            assert start.line not in batch.stored_at_s, f"{sequence_id} is answered twice"
            batch.stored_at_s[start.line] = self.now_s
            self._answer(
                LineStored(
                    part_key=start.part_key,
                    line=start.line,
                    is_completed=True,
                    prompt_tokens=PROMPT_TOKENS,
                    answer_tokens=ANSWER_TOKENS,
                    **BY,
                )
            )

    def _report_worker(self) -> None:
        load = self.scheduler.load()
        self._reports += 1
        report = WorkerReport(
            worker_id="worker",
            beat=self._reports,
            alias=ALIAS,
            process_id=1,
            context_tokens_max=self.engine.context_tokens_max,
            vocabulary_size=VOCABULARY,
            block_tokens=self.engine.block_tokens,
            blocks_total=load.blocks_total,
            blocks_free=load.blocks_free,
            sessions_running=load.sequences_running,
            sessions_waiting=load.sequences_waiting,
            tokens_waiting=load.tokens_waiting,
            tokens_generated=0,
            steps=0,
            step_ms_recent=1.0,
        )
        self.tell(WorkerReported(report=report, **BY))
        self.world.after(REPORT_NS, self._report_worker)


BY: Final = {"cause_id": "world"}


def _batch_of(part_key: str) -> str:
    return part_key.rpartition(".")[0]


def hash_of(sequence_id: str, position: int) -> int:
    """A token that differs from sequence to sequence."""
    return 1 + sum(map(ord, sequence_id)) * 31 % 499 + position * 7 % 499


def work_of(plan: StepPlan) -> StepWork:
    """What a step computes."""
    work = StepWork()
    for entry in plan.entries:
        if len(entry.token_ids) == 1:
            work = work.with_decode(tokens_before=entry.start_position)
        else:
            work = work.with_prefill(
                tokens=len(entry.token_ids), tokens_before=entry.start_position
            )
    return work

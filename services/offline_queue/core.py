"""The offline queue's core: one event in, commands out.

It keeps three promises. A part is acknowledged only when each of its lines is stored. A line is
taken up only while its batch is in progress, not paused and not past its deadline. A batch ends
only by a task, which some queue's clerk leases: this core asks for one whenever a survey shows that
a batch needs to be looked at and nobody has been asked.

The parts: `holding` (what is leased), `intake` (which line goes next), `harvest` (how many may
run), `taking_up` (what starts now), `surveying` (what becomes of whole batches).
"""

from collections.abc import Sequence
from typing import assert_never

from libs.contracts.batches import BatchRecord, BatchStatus
from libs.contracts.reports import OfflineQueueReport
from libs.kernel.core import SetTimer, TimerFired, require
from libs.kernel.units import NS_PER_S
from libs.policy.fair_share import cost
from services.offline_queue.commands import (
    PublishReport,
    QueueCommand,
)
from services.offline_queue.counters import QueueCounters
from services.offline_queue.events import (
    BatchForgotten,
    BatchRead,
    BatchSurveyed,
    JobsLeased,
    LinePutOff,
    LineStored,
    PartAcknowledged,
    PartKept,
    PartsLeased,
    QueueEvent,
    QueueReported,
    QueueStarted,
    QueueStopping,
    WorkerReported,
)
from services.offline_queue.harvest import Harvest
from services.offline_queue.holding import Holding
from services.offline_queue.intake import Choice, Intake, Source
from services.offline_queue.options import QueueOptions
from services.offline_queue.surveying import Due, Surveying
from services.offline_queue.taking_up import TakingUp

REPORT_TIMER = "report"
SURVEY_TIMER = "survey"
KEEP_TIMER = "keep"


class QueueCore:
    """Decides everything an offline queue does; see the head of this file."""

    def __init__(self, options: QueueOptions) -> None:
        self._options = options
        self.counters = QueueCounters()
        self.intake = Intake(aged_ns=options.aged_ns, lease_ns=options.lease_ns)
        self.harvest = Harvest(lines_max=options.lines_running_max, silence_ns=options.silence_ns)
        self.surveying = Surveying(options, self.harvest)
        self._holding = Holding(
            options, intake=self.intake, surveying=self.surveying, counters=self.counters
        )
        self._taking_up = TakingUp(
            options,
            intake=self.intake,
            harvest=self.harvest,
            surveying=self.surveying,
            holding=self._holding,
            counters=self.counters,
        )
        self._commands: list[QueueCommand] = []
        self._now_ns = 0
        self._cause_id = ""
        self._unix_ns_at_0 = 0
        self._beat = 0
        self._is_stopping = False

    def handle(self, event: QueueEvent, *, now_ns: int) -> Sequence[QueueCommand]:
        """Apply one event and return the commands it brings forth, in order."""
        require(now_ns >= self._now_ns, "time went backwards")
        self._now_ns = now_ns
        self._cause_id = event.cause_id
        self._apply(event)
        if self._unix_ns_at_0 and not self._is_stopping:
            self._emit(
                *self._taking_up.take_up(
                    now_ns=now_ns, now_unix_s=self.now_unix_s(), cause_id=self._cause_id
                )
            )
        commands, self._commands = self._commands, []
        return commands

    def check_invariants(self) -> None:
        """What must hold between any two events; raises InvariantViolation."""
        self.intake.check_invariants()
        held = len(self.intake.parts)
        require(held <= 2 * self._options.parts_held_max, f"{held} parts are held")

    def due(self) -> Due:
        """Return what all queues together have before them."""
        return self.surveying.due(now_unix_s=self.now_unix_s())

    def now_unix_s(self) -> int:
        """Return the wall clock's seconds, as of the last event."""
        return (self._unix_ns_at_0 + self._now_ns) // NS_PER_S

    def _apply(self, event: QueueEvent) -> None:
        match event:
            case QueueStarted():
                self._started(event)
            case TimerFired():
                self._timer_fired(event)
            case BatchRead():
                self._batch_read(event.record)
            case BatchForgotten():
                self.surveying.forget(event.batch_id)
                self._emit(*self._holding.drop(event.batch_id, cause_id=self._cause_id))
            case QueueStopping():
                self._is_stopping = True
            case WorkerReported():
                self.harvest.worker_reported(event.report, now_ns=self._now_ns)
            case QueueReported():
                self.harvest.queue_reported(event.report, now_ns=self._now_ns)
            case PartsLeased():
                self._emit(*self._holding.parts_leased(event, now_ns=self._now_ns))
            case JobsLeased():
                self._emit(
                    *self._holding.jobs_leased(
                        event, now_ns=self._now_ns, unix_ns_at_0=self._unix_ns_at_0
                    )
                )
            case LineStored():
                self._line_stored(event)
            case LinePutOff():
                self._line_put_off(event)
            case PartAcknowledged():
                self._emit(*self._holding.acknowledged(event))
            case PartKept():
                self._holding.kept(event)
            case BatchSurveyed():
                self._emit(*self.surveying.surveyed(event, now_unix_s=self.now_unix_s()))
            case _:
                assert_never(event)

    # ------------------------------------------------------------------ time

    def _started(self, event: QueueStarted) -> None:
        self._unix_ns_at_0 = event.now_unix_ns - self._now_ns
        self._report()
        self._set_timer(SURVEY_TIMER, self._options.survey_interval_ns)
        self._set_timer(KEEP_TIMER, self._options.keep_interval_ns)

    def _timer_fired(self, event: TimerFired) -> None:
        match event.key:
            case "report":
                self._report()
            case "survey":
                self._emit(*self.surveying.survey(cause_id=self._cause_id))
                self._reopen_sources()
                self._set_timer(SURVEY_TIMER, self._options.survey_interval_ns)
            case "keep":
                self._emit(*self._holding.keep(now_ns=self._now_ns, cause_id=self._cause_id))
                self._set_timer(KEEP_TIMER, self._options.keep_interval_ns)

    def _report(self) -> None:
        self.harvest.forget_silent(now_ns=self._now_ns)
        self.harvest.rate.observe(now_ns=self._now_ns, is_busy=self.harvest.is_busy)
        due = self.due()
        running = self.intake.running()
        report = OfflineQueueReport(
            queue_id=self._options.queue_id,
            beat=self._beat,
            process_id=self._options.process_id,
            batches_open=due.batches_open,
            lines_waiting=max(0, due.lines_left - running),
            lines_running=running,
            lines_running_max=sum(map(self._taking_up.lines_max, self._taking_up.aliases())),
            lines_completed=self.counters.lines_completed,
            lines_failed=self.counters.lines_failed,
            lines_expired=self.counters.lines_expired,
            tokens_due=due.tokens,
            tokens_per_s_due=due.tokens_per_s,
            requests_submitted=self.counters.lines_started,
            laxity_s_min=due.laxity_s_min,
        )
        self._beat += 1
        self._emit(PublishReport(report=report, cause_id=self._cause_id))
        self._set_timer(REPORT_TIMER, self._options.report_interval_ns)

    # ------------------------------------------------------------------ sources

    def _batch_read(self, record: BatchRecord) -> None:
        self.surveying.put(record)
        if record.status is not BatchStatus.IN_PROGRESS:
            self._emit(*self._holding.drop(record.batch_id, cause_id=self._cause_id))
            return
        self.intake.put_source(self._source_of(record))

    def _source_of(self, record: BatchRecord) -> Source:
        deadline_at_ns = record.deadline_at_unix_s * NS_PER_S - self._unix_ns_at_0
        window_s = record.deadline_at_unix_s - record.created_at_unix_s
        return Source(
            source_id=record.batch_id,
            alias=record.alias or "",
            tenant=record.tenant,
            deadline_at_ns=deadline_at_ns,
            window_ns=window_s * NS_PER_S,
            is_open=not record.is_paused and deadline_at_ns > self._now_ns,
        )

    def _reopen_sources(self) -> None:
        """Look at every batch again: its deadline may have passed."""
        for record in self.surveying.in_progress():
            self.intake.put_source(self._source_of(record))

    # ------------------------------------------------------------------ lines

    def _line_stored(self, event: LineStored) -> None:
        took = cost(prompt_tokens=event.prompt_tokens, answer_tokens=event.answer_tokens)
        held = self.intake.stop(event.part_key, event.line, tokens_charged=took)
        if event.is_completed:
            self.counters.lines_completed += 1
        else:
            self.counters.lines_failed += 1
        if held is None:
            return
        part = self.intake.parts[event.part_key]
        alias = self.intake.sources[part.source_id].alias
        if event.is_completed:
            self.harvest.window(alias).grow(lines_max=self._options.lines_running_max)
            self.surveying.observe_line(
                part.source_id, tokens=event.prompt_tokens + event.answer_tokens
            )
        del part.lines[event.line]
        self._emit(*self._holding.acknowledge_if_done(part, cause_id=self._cause_id))

    def _line_put_off(self, event: LinePutOff) -> None:
        held = self.intake.stop(event.part_key, event.line, tokens_charged=None)
        if held is None:
            return
        self.counters.lines_put_off += 1
        if event.is_congestion:
            alias = self.intake.sources[self.intake.parts[event.part_key].source_id].alias
            self.harvest.window(alias).halve(now_ns=self._now_ns)
        if event.failure:
            held.attempts += 1
        wait_ns = min(self._options.put_off_ns << held.put_offs, self._options.put_off_ns_max)
        held.put_offs = min(held.put_offs + 1, 16)
        held.not_before_ns = self._now_ns + wait_ns
        if held.attempts >= self._options.attempts_max:
            choice = self._choice(event.part_key, event.line)
            self._emit(
                self._taking_up.fail(
                    choice, "server_error", message=event.failure, cause_id=self._cause_id
                )
            )

    def _choice(self, part_key: str, line: int) -> Choice:
        part = self.intake.parts[part_key]
        source = self.intake.sources[part.source_id]
        return Choice(source=source, part=part, line=part.lines[line])

    # ------------------------------------------------------------------ small things

    def _emit(self, *commands: QueueCommand) -> None:
        self._commands.extend(commands)

    def _set_timer(self, key: str, after_ns: int) -> None:
        self._emit(SetTimer(key=key, after_ns=after_ns, cause_id=self._cause_id))

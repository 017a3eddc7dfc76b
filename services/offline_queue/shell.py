"""The offline queue's shell: messages and records in, commands out, no decision."""

import asyncio
import contextlib
from typing import Final, assert_never

from libs.client.client import ClientOptions, TideClient
from libs.client.reader_events import ReaderOptions
from libs.contracts import subjects
from libs.contracts.batches import BATCH_RECORDS
from libs.contracts.reports import REPORTS, OfflineQueueReport, WorkerReport
from libs.contracts.wire import encode
from libs.kernel.core import SetTimer
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.best_effort import BestEffortPublisher, close_all
from libs.runtime.blob_store import BlobStore
from libs.runtime.bus import (
    Bus,
    BusMessage,
    InitialStateComplete,
    KeyDeleted,
    KeyEvent,
    KeyUpdated,
)
from libs.runtime.clock import Clock
from libs.runtime.shell import ActorShell, Effect
from services.offline_queue.asking import CONGESTION, Asking
from services.offline_queue.clerk import Clerk
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
from services.offline_queue.desk import Desk
from services.offline_queue.events import (
    BatchForgotten,
    BatchRead,
    BatchSurveyed,
    JobsLeased,
    LinePutOff,
    PartAcknowledged,
    PartKept,
    PartsLeased,
    QueueEvent,
    QueueReported,
    QueueStarted,
    QueueStopping,
    WorkerReported,
)
from services.offline_queue.janitor import Janitor
from services.offline_queue.job_runner import JobRunner
from services.offline_queue.leases import Leases
from services.offline_queue.line_runner import LineRunner
from services.offline_queue.options import QueueOptions
from services.offline_queue.running_lines import RunningLines
from services.offline_queue.store import OfflineStore

STORE_TIMEOUT_NS: Final = 30 * NS_PER_S
READER_OPTIONS: Final = ReaderOptions(
    acceptance_wait_ns=15 * NS_PER_S,
    reasons_not_retried=CONGESTION,
)
"""A rejection for want of room is told at once: it sets the pace. Longer than the 8 s that a
broker's cluster may need to elect a leader."""


class QueueShell:
    """One offline queue on a live bus."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: OfflineStore,
        blobs: BlobStore,
        options: QueueOptions,
        clock: Clock,
    ) -> None:
        self.core = QueueCore(options)
        self._bus = bus
        self._publisher = BestEffortPublisher(bus)
        self._store = store
        self._options = options
        self._clock = clock
        self._client = TideClient(bus, options=ClientOptions(reader=READER_OPTIONS))
        self._leases = Leases(store, blobs)
        self._asking = Asking(self._client)
        self._lines = RunningLines(
            self._leases,
            self._asking,
            lines=LineRunner(self._asking, store, blobs),
            jobs=JobRunner(self._asking, store),
        )
        self._desk = Desk(bus, store)
        self._clerk = Clerk(store, blobs, lease_ns=options.lease_ns)
        self._janitor = Janitor(store, blobs)
        self.actor: ActorShell[QueueEvent, QueueCommand] = ActorShell(
            core=self.core, interpret=self._interpret, clock=clock, name=options.queue_id
        )

    @property
    def messages_unsent(self) -> int:
        """Reports that the broker could not take; the next one replaces them."""
        return self._publisher.messages_unsent

    @property
    def tokens_harvested(self) -> int:
        """Tokens of prompts and answers since the start."""
        return self._asking.tokens_harvested

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until told to stop; what is under way then goes on with other queues."""
        await self._client.start()
        reports = [
            await self._bus.subscribe(pattern)
            for pattern in (subjects.WORKER_REPORTS, subjects.OFFLINE_QUEUE_REPORTS)
        ]
        questions = await self._desk.subscribe()
        watch = await self._store.batches.watch()
        self.actor.post(
            QueueStarted(now_unix_ns=self._clock.now_unix_ns(), cause_id=self._options.queue_id)
        )
        async with asyncio.TaskGroup() as tasks:
            for subscription in reports:
                tasks.create_task(self.actor.feed(subscription, self._translate))
            tasks.create_task(self.actor.feed(watch, self._translate_record))
            tasks.create_task(self._desk.run(questions))
            helpers = [
                tasks.create_task(self._clerk.run(stopping)),
                tasks.create_task(self._janitor.run(stopping)),
            ]
            tasks.create_task(self.actor.run())
            await stopping.wait()
            await self._leave()
            for helper in helpers:
                helper.cancel()
            await close_all([questions, *reports])
            with contextlib.suppress(Unavailable):
                await watch.close()
            self.actor.stop()
        # What a fetch that was under way has brought since, often the very parts given back before.
        await self._leases.give_back_all()
        with contextlib.suppress(Unavailable):
            await self._client.close()

    async def _leave(self) -> None:
        """Hand everything over: lines go on with the routers, parts back to the stream."""
        self.actor.post(QueueStopping(cause_id=self._options.queue_id))
        await self._lines.leave()
        await self._leases.give_back_all()

    def _translate(self, message: BusMessage) -> QueueEvent | None:
        report = REPORTS.decode(message.payload)
        match report:
            case WorkerReport():
                return WorkerReported(report=report, cause_id=report.worker_id)
            case OfflineQueueReport():
                return QueueReported(report=report, cause_id=report.queue_id)
            case _:
                return None

    def _translate_record(self, change: KeyEvent) -> QueueEvent | None:
        match change:
            case KeyUpdated():
                return BatchRead(record=BATCH_RECORDS.decode(change.value), cause_id=change.key)
            case KeyDeleted():
                return BatchForgotten(batch_id=change.key, cause_id=change.key)
            case InitialStateComplete():
                return None
            case _:
                assert_never(change)

    def _interpret(self, command: QueueCommand) -> Effect[QueueEvent] | None:
        match command:
            case LeaseParts():
                none = PartsLeased(source_id=command.batch_id, parts=(), cause_id=command.cause_id)
                return Effect(
                    work=lambda: self._leases.lease_parts(command),
                    failed=lambda _: none,
                    timeout_ns=STORE_TIMEOUT_NS,
                )
            case LeaseJobs():
                return Effect(
                    work=lambda: self._leases.lease_jobs(command),
                    failed=lambda _: JobsLeased(jobs=(), cause_id=command.cause_id),
                    timeout_ns=STORE_TIMEOUT_NS,
                )
            case StartLine() | FailLine():
                return Effect(
                    work=lambda: self._lines.run(command),
                    failed=lambda error: LinePutOff(
                        part_key=command.part_key,
                        line=command.line,
                        failure=type(error).__name__,
                        cause_id=command.cause_id,
                    ),
                )
            case DropPart():
                self._leases.drop(command.part_key)
                self._lines.drop(command.part_key)
                return None
            case AcknowledgePart():
                return Effect(
                    work=lambda: self._acknowledge(command),
                    failed=lambda _: PartAcknowledged(
                        part_key=command.part_key, is_done=False, cause_id=command.cause_id
                    ),
                    timeout_ns=STORE_TIMEOUT_NS,
                )
            case SetTimer():
                return None  # the actor's own
            case KeepPart() | SurveyBatch() | AskForTask() | ChangeBatch() | PublishReport():
                return Effect(work=lambda: self._say(command), timeout_ns=STORE_TIMEOUT_NS)
            case _:
                assert_never(command)

    async def _say(
        self, command: KeepPart | SurveyBatch | AskForTask | ChangeBatch | PublishReport
    ) -> QueueEvent | None:
        """Carry out what is said again if it is lost."""
        match command:
            case KeepPart():
                return await self._keep(command)
            case SurveyBatch():
                return await self._survey(command)
            case AskForTask():
                await self._store.append_task(command.batch_id)
            case ChangeBatch():
                await self._store.change(command.batch_id, command.change)
            case PublishReport():
                await self._publish(command)
            case _:
                assert_never(command)
        return None

    async def _keep(self, command: KeepPart) -> PartKept:
        await self._leases.keep(command.part_key)
        return PartKept(
            part_key=command.part_key, asked_at_ns=command.asked_at_ns, cause_id=command.cause_id
        )

    async def _acknowledge(self, command: AcknowledgePart) -> PartAcknowledged:
        await self._leases.acknowledge(command.part_key)
        return PartAcknowledged(part_key=command.part_key, is_done=True, cause_id=command.cause_id)

    async def _survey(self, command: SurveyBatch) -> BatchSurveyed:
        # Work first: of a part that is gone by then, all lines are among the outcomes.
        parts_left, tasks_left = await self._store.work_left(command.batch_id)
        completed, failed = await self._store.outcomes(command.batch_id)
        return BatchSurveyed(
            batch_id=command.batch_id,
            parts_left=parts_left,
            tasks_left=tasks_left,
            completed=completed,
            failed=failed,
            cause_id=command.cause_id,
        )

    async def _publish(self, command: PublishReport) -> None:
        """Say the report, with the one figure that changes with every token."""
        report = command.report.model_copy(update={"tokens_harvested": self.tokens_harvested})
        subject = subjects.offline_queue_report(self._options.queue_id)
        await self._publisher.publish(subject, encode(report))

"""The planner's shell: bus messages in, commands out, no decision.

Core messages may be lost while the broker is away: that is counted and not reported, because each
tells the whole and is said again. What is stored goes through PlacementStore.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, assert_never

import structlog

from libs.contracts.reports import PlannerReport
from libs.kernel.core import SetTimer
from libs.kernel.units import NS_PER_S, milliseconds
from libs.runtime.best_effort import BestEffortPublisher, run_until
from libs.runtime.bus import Bus, BusMessage
from libs.runtime.clock import Clock
from libs.runtime.reachability import is_worker_reachable
from libs.runtime.shell import ActorShell, Effect
from services.planner.commands import (
    AnnouncePlacement,
    AnswerPin,
    CommitPlacement,
    PingWorker,
    PlannerCommand,
    PublishCapacity,
    PublishReport,
    ReadPlacement,
    TellDecision,
)
from services.planner.core import PlannerCore
from services.planner.events import (
    PlannerEvent,
    PlannerStarted,
    StoreUnavailable,
    WorkerUnreachable,
)
from services.planner.options import PlannerOptions
from services.planner.provisioners.port import Provisioner
from services.planner.store import PlacementStore
from services.planner.wire import Sending, event_of, listening, outgoing

STORE_TIMEOUT_NS: Final = 8 * NS_PER_S
"""Past every time-out of the bus itself: the last resort against an effect that never ends."""

_log = structlog.get_logger(__name__)


class TimedCore:
    """The core, and how long its latest plan took: a figure that a core cannot know itself."""

    def __init__(self, core: PlannerCore, clock: Clock) -> None:
        self._core = core
        self._clock = clock
        self.plan_ms_recent = 0.0

    def handle(self, event: PlannerEvent, *, now_ns: int) -> Sequence[PlannerCommand]:
        """Pass the event on; an event that led to a plan is timed."""
        plans_before = self._core.counters.plans_made
        commands = self._core.handle(event, now_ns=now_ns)
        if self._core.counters.plans_made > plans_before:
            self.plan_ms_recent = milliseconds(self._clock.now_ns() - now_ns)
        return commands

    def check_invariants(self) -> None:
        """As the core's own."""
        self._core.check_invariants()


class PlannerShell:
    """One planner on a live bus."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: PlacementStore,
        provisioner: Provisioner,
        options: PlannerOptions,
        clock: Clock,
    ) -> None:
        self.core = PlannerCore(options)
        self._bus = bus
        self._publisher = BestEffortPublisher(bus)
        self._store = store
        self._provisioner = provisioner
        self._options = options
        self._clock = clock
        self._timed = TimedCore(self.core, clock)
        self._provisioning = asyncio.Lock()
        self.actor: ActorShell[PlannerEvent, PlannerCommand] = ActorShell(
            core=self._timed,
            interpret=self._interpret,
            clock=clock,
            name=options.planner_id,
        )

    @property
    def messages_unsent(self) -> int:
        """Core messages that the broker could not take; each is said again."""
        return self._publisher.messages_unsent

    @property
    def plan_ms_recent(self) -> float:
        """How long the latest plan took."""
        return self._timed.plan_ms_recent

    async def run(self, stopping: asyncio.Event) -> None:
        """Plan until told to stop; another planner then takes over."""
        subscriptions = [
            await self._bus.subscribe(pattern) for pattern in listening(self._options.alias)
        ]
        self.actor.post(
            PlannerStarted(now_unix_ns=self._clock.now_unix_ns(), cause_id=self._options.planner_id)
        )
        await run_until(stopping, self.actor, heard=subscriptions, translate=self._translate)

    def _translate(self, message: BusMessage) -> PlannerEvent | None:
        return event_of(
            subject=message.subject,
            payload=message.payload,
            reply_to=message.reply_to,
            now_unix_ns=self._clock.now_unix_ns(),
        )

    def _interpret(self, command: PlannerCommand) -> Effect[PlannerEvent] | None:
        match command:
            case ReadPlacement():
                return Effect(
                    work=lambda: self._store.read(command),
                    failed=lambda _: _unavailable(command),
                    timeout_ns=STORE_TIMEOUT_NS,
                )
            case CommitPlacement():
                return Effect(
                    work=lambda: self._store.commit(command),
                    failed=lambda _: _unavailable(command),
                    timeout_ns=STORE_TIMEOUT_NS,
                )
            case PublishCapacity():
                return Effect(work=lambda: self._provide(command))
            case PingWorker():
                return Effect(work=lambda: self._ping(command))
            case AnnouncePlacement() | AnswerPin():
                return Effect(work=lambda: self._send(command))
            case PublishReport():
                timed = command.report.model_copy(update={"plan_ms_recent": self.plan_ms_recent})
                return Effect(work=lambda: self._send_report(timed, command))
            case TellDecision():
                _log.info(command.decision, cause_id=command.cause_id, **dict(command.fields))
                return None
            case SetTimer():
                return None  # the actor's own
            case _:
                assert_never(command)

    async def _ping(self, command: PingWorker) -> WorkerUnreachable | None:
        is_reachable = await is_worker_reachable(
            self._bus, command.worker_id, asker_id=self._options.planner_id
        )
        if is_reachable:
            return None
        return WorkerUnreachable(worker_id=command.worker_id, cause_id=command.cause_id)

    async def _send_report(self, report: PlannerReport, command: PublishReport) -> None:
        await self._send(PublishReport(report=report, cause_id=command.cause_id))

    async def _provide(self, command: PublishCapacity) -> None:
        """Publish the wish, then let the provisioner act on it, one wish at a time."""
        await self._send(command)
        if self._provisioning.locked():
            return  # still at work on an earlier one; the next is said soon
        async with self._provisioning:
            await self._provisioner.provide(command)

    async def _send(self, command: Sending) -> None:
        out = outgoing(command, planner_id=self._options.planner_id)
        await self._publisher.publish(out.subject, out.payload)


def _unavailable(command: ReadPlacement | CommitPlacement) -> StoreUnavailable:
    return StoreUnavailable(op_id=command.op_id, cause_id=command.cause_id)

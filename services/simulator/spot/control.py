"""Planner and migrator, interpreted: the deciding cores of the fleet, command by command.

The planner's and the migrator's recurring timers fire in rounds, together with everybody's report.
While anything is under way rounds are short; a fleet at rest is looked at in long ones, in which
nothing would happen anyway but reports that say the same. What silence counts in is echoes, and
those come once a round, too. Every other timer fires on time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, assert_never

from libs.contracts.handover import ToMigrator
from libs.contracts.handover_record import HandoverRecord
from libs.contracts.placement import Placement
from libs.contracts.preemption import PreemptionNotice
from libs.contracts.reports import RouterReport
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.sim.process import SimProcess
from libs.sim.world import World
from services.migrator import commands as migrating
from services.migrator import events as migrator_events
from services.migrator.core import REPORT_TIMER as MIGRATOR_REPORT
from services.migrator.core import SWEEP_TIMER, MigratorCore
from services.migrator.options import MigratorOptions
from services.planner import commands as planning
from services.planner import events as planner_events
from services.planner.core import CHECK_TIMER, PlannerCore
from services.planner.core import REPORT_TIMER as PLANNER_REPORT
from services.planner.options import PlannerOptions
from services.simulator.spot.event_log import EventLog
from services.simulator.spot.worker import SimWorker

STORE_NS: Final = 2 * NS_PER_MS
"""To write to the broker's store, or read from it."""
MESSAGE_NS: Final = NS_PER_MS
AWAKE_NS: Final = 5 * NS_PER_S
"""For so long after anything happened rounds stay short."""
MigratorEvent: TypeAlias = migrator_events.MigratorEvent
PlannerEvent: TypeAlias = planner_events.PlannerEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceOptions:
    """How often everybody reports and looks again."""

    busy_ns: int = 250 * NS_PER_MS
    rest_ns: int = 10 * NS_PER_S
    """Equal to `busy_ns`: the fleet never rests."""
    is_checked_each_event: bool = True
    """Whether invariants are checked after every event; else once a round."""


class Fleet(Protocol):
    """What the control plane needs of the fleet."""

    def living_workers(self) -> list[SimWorker]:
        """All that run, by id."""

    def find_worker(self, worker_id: str) -> SimWorker | None:
        """The worker of this id, if it runs."""

    def router_report(self) -> RouterReport | None:
        """What the routers have accepted; None where demand is told, not measured."""

    def placement_reached(self, plan_revision: int) -> None:
        """Take note that the fleet has the committed shape."""

    def capacity_wanted(self, capacity: planning.PublishCapacity) -> None:
        """Let whoever has the nodes bring those that the planner wants."""


class ControlPlane(SimProcess):
    """One planner and one migrator, and what they store."""

    def __init__(
        self, world: World, log: EventLog, fleet: Fleet, *, planner: PlannerOptions,
        migrator: MigratorOptions, pace: PaceOptions,
    ) -> None:  # fmt: skip
        super().__init__(world, name="control")
        self.planner = PlannerCore(planner)
        self.migrator = MigratorCore(migrator)
        self._log = log
        self._fleet = fleet
        self._pace = pace
        self._placement: tuple[Placement, int] | None = None
        self._record: tuple[HandoverRecord, int] | None = None
        self._recurring: dict[tuple[str, str], TimerFired] = {}
        self._awake_until_ns = 0
        self._rounds = 0

    @property
    def record(self) -> HandoverRecord | None:
        """The migrator's stored record."""
        return None if self._record is None else self._record[0]

    def begin(self) -> None:
        """Start both, and the rounds."""
        now_ns = self.world.now_ns
        self._plan(planner_events.PlannerStarted(now_unix_ns=now_ns, cause_id="start"))
        self._migrate(migrator_events.MigratorStarted(now_unix_ns=now_ns, cause_id="start"))
        self.wake()

    def wake(self) -> None:
        """Something has happened: look at once, and often for a while."""
        self._awake_until_ns = self.world.now_ns + AWAKE_NS
        self.set_timer("round", after_ns=MESSAGE_NS, action=self._round)

    def answered(self, answer: ToMigrator) -> None:
        """Carry a worker's answer to the migrator."""
        event = migrator_events.WorkerAnswered(answer=answer, cause_id=answer.op_id)
        self._soon(MESSAGE_NS, lambda: self._migrate(event))

    def noticed(self, notice: PreemptionNotice) -> None:
        """Carry a watcher's notice to the planner."""
        event = planner_events.NoticeReceived(notice=notice, cause_id=notice.notice_id)
        self._soon(MESSAGE_NS, lambda: self._plan(event))

    # ------------------------------------------------------------------ rounds

    def _round(self) -> None:
        self._rounds += 1
        self.planner.check_invariants()
        self.migrator.check_invariants()
        for worker in self._fleet.living_workers():
            report = worker.report()
            cause_id = worker.name
            self._plan(planner_events.WorkerReported(report=report, cause_id=cause_id))
            self._migrate(migrator_events.WorkerReported(report=report, cause_id=cause_id))
        routers = self._fleet.router_report()
        if routers is not None:
            self._plan(planner_events.RouterReported(report=routers, cause_id=routers.router_id))
        due, self._recurring = self._recurring, {}
        for (actor, _), fired in due.items():
            if actor == "planner":
                self._plan(fired)
            else:
                self._migrate(fired)
        is_busy = bool(self.migrator.conducts) or self.world.now_ns < self._awake_until_ns
        after_ns = self._pace.busy_ns if is_busy else self._pace.rest_ns
        self.set_timer("round", after_ns=after_ns, action=self._round)

    def _soon(self, after_ns: int, action: Callable[[], None]) -> None:
        self.world.after(after_ns, lambda: self.deliver(action))

    # ------------------------------------------------------------------ the planner

    def _plan(self, event: PlannerEvent) -> None:
        commands = self.planner.handle(event, now_ns=self.world.now_ns)
        if self._pace.is_checked_each_event:
            self.planner.check_invariants()
        for command in commands:
            self._perform_planned(command)

    def _perform_planned(self, command: planning.PlannerCommand) -> None:
        match command:
            case SetTimer():
                self._set("planner", command, recurring=(PLANNER_REPORT, CHECK_TIMER))
            case planning.ReadPlacement():
                self._soon(STORE_NS, lambda: self._plan(self._placement_read(command.op_id)))
            case planning.CommitPlacement():
                self._soon(STORE_NS, lambda: self._commit(command))
            case planning.AnnouncePlacement():
                announced = migrator_events.PlacementAnnounced(
                    plan_revision=command.placement.plan_revision, cause_id=command.cause_id
                )
                self._soon(MESSAGE_NS, lambda: self._migrate(announced))
            case planning.PublishReport():
                echo = planner_events.PlannerReported(
                    report=command.report,
                    received_at_unix_ns=self.world.now_ns,
                    cause_id=command.cause_id,
                )
                self._soon(0, lambda: self._plan(echo))
            case planning.PingWorker():
                if self._fleet.find_worker(command.worker_id) is None:
                    gone = planner_events.WorkerUnreachable(
                        worker_id=command.worker_id, cause_id=command.cause_id
                    )
                    self._soon(MESSAGE_NS, lambda: self._plan(gone))
            case planning.TellDecision():
                self._log.add("planner", command.decision, **dict(command.fields))
            case planning.PublishCapacity():
                self._fleet.capacity_wanted(command)
            case planning.AnswerPin():
                pass  # nobody pins a shape
            case _:
                assert_never(command)

    def _placement_read(self, op_id: str) -> PlannerEvent:
        placement, revision = self._placement or (None, None)
        return planner_events.PlacementRead(
            op_id=op_id, placement=placement, revision=revision, cause_id=op_id
        )

    def _commit(self, command: planning.CommitPlacement) -> None:
        known = None if self._placement is None else self._placement[1]
        if known != command.revision:
            self._plan(
                planner_events.PlacementConflict(op_id=command.op_id, cause_id=command.cause_id)
            )
            return
        revision = (known or 0) + 1
        self._placement = (command.placement, revision)
        self.wake()
        self._plan(
            planner_events.PlacementCommitted(
                op_id=command.op_id, revision=revision, cause_id=command.cause_id
            )
        )

    # ------------------------------------------------------------------ the migrator

    def _migrate(self, event: MigratorEvent) -> None:
        commands = self.migrator.handle(event, now_ns=self.world.now_ns)
        if self._pace.is_checked_each_event:
            self.migrator.check_invariants()
        for command in commands:
            self._perform_migrated(command)

    def _perform_migrated(self, command: migrating.MigratorCommand) -> None:
        match command:
            case SetTimer():
                self._set("migrator", command, recurring=(MIGRATOR_REPORT, SWEEP_TIMER))
            case migrating.StoreRecord():
                self._soon(STORE_NS, lambda: self._store(command))
            case migrating.ReadRecord():
                self._soon(STORE_NS, lambda: self._migrate(self._record_read(command.op_id)))
            case migrating.ReadPlacement():
                self._soon(STORE_NS, lambda: self._migrate(self._placement_for(command.op_id)))
            case migrating.SendToWorker():
                worker = self._fleet.find_worker(command.worker_id)
                if worker is not None:
                    self.world.after(
                        MESSAGE_NS, lambda: worker.deliver(lambda: worker.obey(command.message))
                    )
            case migrating.PingWorker():
                if self._fleet.find_worker(command.worker_id) is None:
                    gone = migrator_events.WorkerUnreachable(
                        worker_id=command.worker_id, cause_id=command.cause_id
                    )
                    self._soon(MESSAGE_NS, lambda: self._migrate(gone))
            case migrating.PublishReport():
                echo = migrator_events.MigratorReported(
                    report=command.report, now_unix_ns=self.world.now_ns, cause_id=command.cause_id
                )
                self._soon(0, lambda: self._migrate(echo))
            case _:
                assert_never(command)

    def _record_read(self, op_id: str) -> MigratorEvent:
        record, revision = self._record or (None, 0)
        return migrator_events.RecordRead(
            op_id=op_id, record=record, revision=revision, cause_id=op_id
        )

    def _placement_for(self, op_id: str) -> MigratorEvent:
        placement = None if self._placement is None else self._placement[0]
        return migrator_events.PlacementRead(op_id=op_id, placement=placement, cause_id=op_id)

    def _store(self, command: migrating.StoreRecord) -> None:
        known = 0 if self._record is None else self._record[1]
        if known != command.revision:
            self._migrate(
                migrator_events.RecordConflict(op_id=command.op_id, cause_id=command.cause_id)
            )
            return
        self._record = (command.record, known + 1)
        for decision in command.decisions:
            self._tell(decision)
        self._migrate(
            migrator_events.RecordStored(
                op_id=command.op_id, revision=known + 1, cause_id=command.cause_id
            )
        )

    def _tell(self, decision: migrating.Decision) -> None:
        if decision.name == "placement_reached":
            self._log.add("migrator", decision.name, plan_revision=decision.plan_revision)
            self._fleet.placement_reached(decision.plan_revision)
        elif decision.handover_id:
            self._log.add(
                decision.handover_id,
                "done" if decision.state is None else decision.state.value,
                sources=decision.source_replica_ids,
                targets=decision.target_replica_ids,
                reason=decision.reason,
            )

    def _set(self, actor: str, command: SetTimer, *, recurring: tuple[str, ...]) -> None:
        fired = TimerFired(key=command.key, cause_id=command.cause_id)
        if command.key in recurring:
            self._recurring[actor, command.key] = fired
            return
        handle = self._plan if actor == "planner" else self._migrate
        self.set_timer(
            f"{actor}/{command.key}", after_ns=command.after_ns, action=lambda: handle(fired)
        )

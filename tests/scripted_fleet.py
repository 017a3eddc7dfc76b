"""A fleet in virtual time: scripted workers, real migrator cores, a bucket, a faulty network."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from libs.contracts.handover import ToMigrator, ToShape
from libs.contracts.handover_record import HandoverRecord
from libs.contracts.placement import Placement, Policy, ReplicaPlacement
from libs.contracts.reports import MigratorReport
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS
from services.migrator.commands import (
    Decision,
    MigratorCommand,
    PingWorker,
    PublishReport,
    ReadPlacement,
    ReadRecord,
    SendToWorker,
    StoreRecord,
)
from services.migrator.core import MigratorCore
from services.migrator.events import (
    MigratorEvent,
    MigratorReported,
    MigratorStarted,
    PlacementAnnounced,
    PlacementRead,
    PlacementUnavailable,
    RecordConflict,
    RecordRead,
    RecordStored,
    RecordUnavailable,
    WorkerAnswered,
    WorkerReported,
    WorkerUnreachable,
)
from services.migrator.options import MigratorOptions
from tests.scripted_worker import ScriptedWorker

TICK_NS = 50 * NS_PER_MS
REPORT_NS = 200 * NS_PER_MS
DELAY_NS = 1 * NS_PER_MS
KNOWN_NS = 4_000 * NS_PER_MS
"""A loss is known, and what was ordered in ignorance of it has arrived, after so long."""
UNIX_NS = 1_800_000_000_000_000_000
"""What the world's clock says when ours is 0."""


@dataclass(kw_only=True)
class Network:
    """What may happen to a message. At rest nothing does."""

    rng: Rng
    lost: float = 0.0
    doubled: float = 0.0
    delay_ns_max: int = 0

    def delays(self) -> list[int]:
        """When the copies of one message arrive, from now."""
        copies = 0 if self.rng.random() < self.lost else 1
        copies += copies and self.rng.random() < self.doubled
        return [DELAY_NS + self.rng.randint(0, self.delay_ns_max) for _ in range(copies)]


@dataclass(kw_only=True)
class Migrator:
    """One migrator process."""

    core: MigratorCore
    is_alive: bool = True
    is_frozen: bool = False
    missed: list[MigratorEvent] = field(default_factory=list)
    """While frozen."""
    timers: dict[str, int] = field(default_factory=dict)
    sent: list[SendToWorker] = field(default_factory=list)


class Fleet:
    """Everything there is; `run` lets time pass."""

    def __init__(self, *, seed: int = 0, policy: Policy = Policy.TIDESERVE) -> None:
        self.now_ns = 0
        self.policy = policy
        self.network = Network(rng=Rng(seed).child("network"))
        self.workers: dict[str, ScriptedWorker] = {}
        self.frozen: set[str] = set()
        self.migrators: dict[str, Migrator] = {}
        self.placement: Placement | None = None
        self.record: HandoverRecord | None = None
        self.revision = 0
        self.decisions: list[Decision] = []
        self.violations: list[str] = []
        self.lost_at_ns = -KNOWN_NS
        """When a worker was last lost without notice."""
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = 0
        self._processes = 0
        self._at(0, self._tick)

    # ------------------------------------------------------------------ who there is

    def add_worker(self, worker_id: str) -> ScriptedWorker:
        """Start a worker process, also again under an id that died."""
        self._processes += 1
        worker = self.workers[worker_id] = ScriptedWorker(
            worker_id=worker_id,
            peers=lambda: list(self.workers.values()),
            process_id=self._processes,
            may_lose_weights=self._may_lose_weights,
        )
        self._at(self._processes * NS_PER_MS, lambda: self._worker_beat(worker))
        return worker

    def _may_lose_weights(self) -> bool:
        is_unknown = self.now_ns - self.lost_at_ns < KNOWN_NS
        return is_unknown or self.policy in (Policy.REPARALLELIZE, Policy.REROUTE)

    def kill_worker(self, worker_id: str) -> None:
        """End the process; groups that it was in break."""
        self.lost_at_ns = self.now_ns
        worker = self.workers.pop(worker_id)
        self.violations.extend(worker.violations)
        for replica_id in worker.positions:
            for peer in self.workers.values():
                held = peer.positions.get(replica_id)
                if held is not None and held.is_formed:
                    held.is_broken = True

    def freeze_worker(self, worker_id: str) -> None:
        """Stop it; what is sent to it meanwhile is lost."""
        self.frozen.add(worker_id)
        self.lost_at_ns = self.now_ns
        if worker_id in self.workers:
            self.workers[worker_id].was_frozen = True

    def add_migrator(self, migrator_id: str, **options: object) -> Migrator:
        """Start a migrator process."""
        core = MigratorCore(
            MigratorOptions(migrator_id=migrator_id, alias="tide", **options)  # type: ignore[arg-type]
        )
        migrator = self.migrators[migrator_id] = Migrator(core=core)
        started = MigratorStarted(now_unix_ns=UNIX_NS + self.now_ns, cause_id=migrator_id)
        self._at(0, lambda: self._tell(migrator, started))
        return migrator

    def freeze(self, migrator_id: str) -> None:
        """Stop its clock; what it is told waits."""
        self.migrators[migrator_id].is_frozen = True

    def wake(self, migrator_id: str) -> None:
        """Let it go on: its timers have long fired, its mailbox is full."""
        migrator = self.migrators[migrator_id]
        migrator.is_frozen = False
        missed, migrator.missed = migrator.missed, []
        for event in missed:
            self._tell(migrator, event)

    def kill_migrator(self, migrator_id: str) -> None:
        """End the process."""
        self.migrators[migrator_id].is_alive = False

    @property
    def owner(self) -> str | None:
        """Whose the record is."""
        return None if self.record is None else self.record.migrator_id

    # ------------------------------------------------------------------ what is planned

    def place(self, *replicas: ReplicaPlacement, **fields: object) -> Placement:
        """Commit a placement and announce it, as a planner would."""
        revision = 1 if self.placement is None else self.placement.plan_revision + 1
        self.placement = Placement(
            plan_revision=revision,
            alias="tide",
            policy=self.policy,
            replicas=replicas,
            cause_id=f"plan-{revision}",
            **fields,  # type: ignore[arg-type]
        )
        announced = PlacementAnnounced(plan_revision=revision, cause_id=f"plan-{revision}")
        for migrator in self.migrators.values():
            self._carry(lambda m=migrator: self._tell(m, announced))  # type: ignore[misc]
        return self.placement

    def is_in_place(self, replica: ReplicaPlacement) -> bool:
        """Whether its workers hold exactly this replica, and its lead serves."""
        for rank, worker_id in enumerate(replica.worker_ids):
            worker = self.workers.get(worker_id)
            held = None if worker is None else worker.serving
            if held is None or held.is_broken or held.rank != rank:
                return False
            name = (held.roster.replica_id, held.roster.replica_epoch)
            if name != (replica.replica_id, replica.replica_epoch):
                return False
        lead = self.workers[replica.lead_worker_id].serving
        return lead is not None and lead.is_serving

    def is_reached(self) -> bool:
        """Whether the fleet is what the placement says, nothing else serves, and it is known."""
        placement, record = self.placement, self.record
        if placement is None or record is None:
            return False
        wanted = {replica.replica_id for replica in placement.replicas}
        return (
            all(self.is_in_place(replica) for replica in placement.replicas)
            and all((w.serving_id or "") in {"", *wanted} for w in self.workers.values())
            and record.plan_revision_reached == placement.plan_revision
            and not record.under_way
        )

    # ------------------------------------------------------------------ time

    def run(self, duration_ms: int, *, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; return whether the condition came true."""
        ends_at_ns = self.now_ns + duration_ms * NS_PER_MS
        while self._queue and self._queue[0][0] <= ends_at_ns:
            at_ns, _, act = heapq.heappop(self._queue)
            self.now_ns = max(self.now_ns, at_ns)
            act()
            if until is not None and until():
                return True
        self.now_ns = ends_at_ns
        return until is None or until()

    def check(self) -> None:
        """Fail if any worker was asked for what nobody may ask."""
        violations = [*self.violations, *(v for w in self.workers.values() for v in w.violations)]
        assert not violations, violations

    def commands_to(self, *worker_ids: str) -> list[ToShape]:
        """What these workers were sent, by whichever migrator."""
        return [
            command.message
            for migrator in self.migrators.values()
            for command in migrator.sent
            if command.worker_id in worker_ids
        ]

    def states(self, handover_id: str) -> list[str]:
        """The states that a hand-over went through, as decided and stored."""
        return [str(d.state) for d in self.decisions if d.handover_id == handover_id]

    def _at(self, delay_ns: int, act: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._queue, (self.now_ns + delay_ns, self._numbers, act))

    def _tick(self) -> None:
        for worker_id, worker in list(self.workers.items()):
            if worker_id in self.frozen:
                continue
            worker.decode()
            for message, answer in worker.tick(now_ns=self.now_ns):
                self._answer(message.migrator_id, answer)
        self._at(TICK_NS, self._tick)

    def _worker_beat(self, worker: ScriptedWorker) -> None:
        if self.workers.get(worker.worker_id) is not worker:
            return
        if worker.worker_id not in self.frozen:
            report = worker.report(self.now_ns)
            event = WorkerReported(report=report, cause_id=worker.worker_id)
            for migrator in self.migrators.values():
                self._carry(lambda m=migrator, e=event: self._tell(m, e))  # type: ignore[misc]
        self._at(REPORT_NS, lambda: self._worker_beat(worker))

    # ------------------------------------------------------------------ migrators

    def _tell(self, migrator: Migrator, event: MigratorEvent) -> None:
        if not migrator.is_alive:
            return
        if migrator.is_frozen:
            migrator.missed.append(event)
            return
        if isinstance(event, TimerFired) and migrator.timers.get(event.key, 0) > self.now_ns:
            return  # set anew meanwhile
        commands = migrator.core.handle(event, now_ns=self.now_ns)
        migrator.core.check_invariants()
        self._interpret(migrator, commands)

    def _interpret(self, migrator: Migrator, commands: Sequence[MigratorCommand]) -> None:
        for command in commands:
            match command:
                case SetTimer():
                    migrator.timers[command.key] = self.now_ns + command.after_ns
                    fired = TimerFired(key=command.key, cause_id=command.cause_id)
                    self._at(command.after_ns, lambda f=fired: self._tell(migrator, f))  # type: ignore[misc]
                case PublishReport():
                    self._publish(command.report)
                case SendToWorker():
                    migrator.sent.append(command)
                    self._carry(lambda c=command: self._deliver(c))  # type: ignore[misc]
                case PingWorker(worker_id=worker_id):
                    if worker_id not in self.workers and not self._is_broker_away():
                        cause_id = command.cause_id
                        self._outcome(
                            migrator, WorkerUnreachable(worker_id=worker_id, cause_id=cause_id)
                        )
                case ReadPlacement():
                    self._outcome(migrator, self._read_placement(command))
                case ReadRecord():
                    self._outcome(migrator, self._read_record(command))
                case StoreRecord():
                    self._store(migrator, command)
                case _:
                    assert_never(command)

    def _outcome(self, migrator: Migrator, event: MigratorEvent) -> None:
        self._at(DELAY_NS, lambda: self._tell(migrator, event))

    def _read_placement(self, command: ReadPlacement) -> MigratorEvent:
        if self._is_broker_away():
            return PlacementUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        return PlacementRead(
            op_id=command.op_id, placement=self.placement, cause_id=command.cause_id
        )

    def _read_record(self, command: ReadRecord) -> MigratorEvent:
        if self._is_broker_away():
            return RecordUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        return RecordRead(
            op_id=command.op_id,
            record=self.record,
            revision=self.revision,
            cause_id=command.cause_id,
        )

    def _store(self, migrator: Migrator, command: StoreRecord) -> None:
        """Write now, or late, or never; the answer may be lost in any case."""
        unknown = RecordUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        if self._is_broker_away():
            if self.network.rng.random() < 0.5:
                late_ns = self.network.rng.randint(0, 500 * NS_PER_MS)
                self._at(late_ns, lambda: self._write(command))
            self._outcome(migrator, unknown)
            return
        outcome = self._write(command)
        self._outcome(migrator, unknown if self._is_broker_away() else outcome)

    def _write(self, command: StoreRecord) -> MigratorEvent:
        if command.revision != self.revision:
            return RecordConflict(op_id=command.op_id, cause_id=command.cause_id)
        self.revision += 1
        self.record = command.record
        self.decisions.extend(command.decisions)
        return RecordStored(op_id=command.op_id, revision=self.revision, cause_id=command.cause_id)

    def _is_broker_away(self) -> bool:
        return self.network.rng.random() < self.network.lost

    def _publish(self, report: MigratorReport) -> None:
        for migrator in self.migrators.values():
            self._carry(lambda m=migrator: self._tell(m, self._reported(report)))  # type: ignore[misc]

    def _reported(self, report: MigratorReport) -> MigratorReported:
        return MigratorReported(
            report=report, now_unix_ns=UNIX_NS + self.now_ns, cause_id=report.migrator_id
        )

    # ------------------------------------------------------------------ messages

    def _carry(self, deliver: Callable[[], None]) -> None:
        for delay_ns in self.network.delays():
            self._at(delay_ns, deliver)

    def _deliver(self, command: SendToWorker) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is None or command.worker_id in self.frozen:
            return
        for answer in worker.receive(command.message, now_ns=self.now_ns):
            self._answer(command.message.migrator_id, answer)

    def _answer(self, migrator_id: str, answer: ToMigrator) -> None:
        migrator = self.migrators.get(migrator_id)
        if migrator is not None:
            event = WorkerAnswered(answer=answer, cause_id=answer.op_id)
            self._carry(lambda: self._tell(migrator, event))


def a_replica(
    name: str, *worker_ids: str, stages: int = 1, epoch: int = 1, inherits: tuple[str, ...] = ()
) -> ReplicaPlacement:
    """A replica of as many shards as its workers make."""
    return ReplicaPlacement(
        replica_id=name,
        replica_epoch=epoch,
        stages=stages,
        shards=len(worker_ids) // stages,
        worker_ids=worker_ids,
        inherits=inherits,
    )

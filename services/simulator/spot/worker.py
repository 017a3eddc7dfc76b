"""A worker of the simulated fleet: obeys the migrator as a live one does, in time, not in bytes.

Every order is answered once, and again when it is repeated. What takes time (loading, forming,
copying) ends in an answer at its end; what the worker holds is what its report says.
"""

from typing import Protocol, assert_never

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    ReleaseSessions,
    ReplicaRoster,
    ResumeReplica,
    ShapeDone,
    ShapeFailed,
    ShapeFailReason,
    StagePosition,
    StopReplica,
    ToMigrator,
    ToShape,
    WeightsFrom,
)
from libs.contracts.preemption import Notice, NoticeWithdrawn
from libs.contracts.reports import ReportedPosition, WorkerReport
from libs.kernel.bounded import RecentMap
from libs.kernel.units import NS_PER_MS, milliseconds
from libs.sim.process import Life, SimProcess
from libs.sim.world import World
from services.gpu_worker.node_life import NodeLife
from services.simulator.spot.copying import KvCopies
from services.simulator.spot.hardware import Hardware
from services.simulator.spot.replica import SimReplica
from services.simulator.spot.transfers import LoadedBytes, Traffic

KV_BLOCKS = 1_000_000
"""Said when a position is staged; how many an engine has it works out by the same rule."""
ALIAS = "simulated"
LOADS_TOLD_MAX = 512
"""Of one worker; past it the first told is made anew."""


class Fleet(Protocol):
    """What a worker needs of the fleet around it."""

    hardware: Hardware
    restart_ns: int
    """What precedes a load from disk."""

    def replica_of(self, roster: ReplicaRoster) -> SimReplica:
        """Return the replica of this roster, made if it is new."""

    def weight_bytes(self, position: ReportedPosition) -> int:
        """Return what the weights of a position come to."""

    def find_replica(self, replica_id: str) -> SimReplica | None:
        """Return the replica of this id, if it is known."""

    def routes(self, order: LoadWeights) -> tuple[Traffic, dict[str, LoadedBytes]]:
        """Return what all targets of the hand-over load from where."""

    def answered(self, answer: ToMigrator) -> None:
        """Carry an answer to the migrator."""

    def serves(self, replica: SimReplica) -> None:
        """Take note of a replica whose lead takes sessions from now on."""

    def release(self, replica: SimReplica, heirs: tuple[str, ...]) -> int:
        """Let the sessions of a replica go on at these leads; return how many."""

    def dropped(self, replica: SimReplica) -> None:
        """Take note that nobody holds the replica any more."""


class SimWorker(SimProcess):
    """One GPU; see the head of this file."""

    def __init__(
        self, world: World, fleet: Fleet, copies: KvCopies, *, blank: WorkerReport, node_id: str
    ) -> None:
        """`blank`: its report, as far as that never changes."""
        super().__init__(world, name=blank.worker_id)
        self.node_id = node_id
        self._fleet = fleet
        self._copies = copies
        self._beat = 0
        self._blank = blank
        self._life = NodeLife()
        self._loads_told: RecentMap[tuple[int, int, int], WorkerReport] = RecentMap(
            entries_max=LOADS_TOLD_MAX
        )
        """What a router was told, by load: of loads that a lead comes back to there are few."""
        self._answers: dict[str, ToMigrator | None] = {}
        """By op_id; None: under way."""
        self.position: ReportedPosition | None = None
        self.staged: ReportedPosition | None = None
        self._weights_bytes = 0
        """Of the position."""

    # ------------------------------------------------------------------ what it says

    def hear(self, notice: Notice) -> None:
        """Take a notice about this node."""
        if isinstance(notice, NoticeWithdrawn):
            self._life.withdraw(notice)
        else:
            self._life.take(notice, now_ns=self.world.now_ns)

    def report(self) -> WorkerReport:
        """Return the state of now under the next beat."""
        replica = self._own_replica()
        grace_left_ns = self._life.grace_left_ns(now_ns=self.world.now_ns)
        self._beat += 1
        update: dict[str, object] = {
            "beat": self._beat,
            "position": self._reported(replica),
            "weights_bytes": self._weights_bytes,
            "grace_left_ms": None if grace_left_ns is None else grace_left_ns // NS_PER_MS,
        }
        if replica is not None and replica.lead_id == self.name:
            engine = replica.engine.report()
            update |= {
                "sessions_running": engine.requests_running,
                "sessions_waiting": engine.requests_waiting,
                "tokens_waiting": engine.tokens_waiting,
                "step_ms_recent": milliseconds(engine.step_ns),
                "is_serving": replica.is_serving,
                "kv_tokens": replica.engine.kv_tokens,
            }
        return self._blank.model_copy(update=update)

    def load_report(self) -> WorkerReport:
        """Return what a router goes by, as of now, for a lead that serves; it takes no beat."""
        replica = self._own_replica()
        assert replica is not None
        engine = replica.engine.report()
        load = (engine.requests_running, engine.requests_waiting, engine.tokens_waiting)
        report = self._loads_told.get(load)
        if report is None:
            report = self._blank.model_copy(
                update={
                    "is_serving": True,
                    "sessions_running": engine.requests_running,
                    "sessions_waiting": engine.requests_waiting,
                    "tokens_waiting": engine.tokens_waiting,
                }
            )
            self._loads_told.put(load, report)
        return report

    def _own_replica(self) -> SimReplica | None:
        if self.position is None:
            return None
        return self._fleet.find_replica(self.position.replica_id)

    def _reported(self, replica: SimReplica | None) -> ReportedPosition | None:
        if self.position is None or replica is None or not replica.is_broken:
            return self.position
        return self.position.model_copy(update={"is_broken": True})

    # ------------------------------------------------------------------ what it is told

    def obey(self, order: ToShape) -> None:
        """Carry out an order; a repeated one is answered again."""
        if order.op_id in self._answers:
            answer = self._answers[order.op_id]
            if answer is not None:
                self._fleet.answered(answer)
            return
        self._answers[order.op_id] = None
        match order:
            case StagePosition():
                self._stage(order)
            case LoadWeights():
                self._load(order)
            case FormReplica():
                self._done_after(order, self._fleet.hardware.group_setup_ns, ShapeDone)
            case CopyKv() | StopReplica():
                self._copy(order)
            case ResumeReplica():
                self._resume(order)
            case ActivateReplica():
                self._activate(order)
            case ReleaseSessions():
                self._release(order)
            case DropReplica():
                self._drop(order)
            case _:
                assert_never(order)

    def _stage(self, order: StagePosition) -> None:
        replica = self._fleet.replica_of(order.replica)
        placed = next(p for p in order.replica.workers if p.worker_id == self.name)
        self.staged = ReportedPosition(
            replica_id=replica.replica_id,
            replica_epoch=order.replica.replica_epoch,
            stages=order.replica.stages,
            shards=order.replica.shards,
            stage=placed.stage,
            shard=placed.shard,
        )
        rendezvous = f"{self.name}/{replica.replica_id}" if replica.lead_id == self.name else ""
        self._answer(order, rendezvous=rendezvous, kv_blocks=KV_BLOCKS)

    def _load(self, order: LoadWeights) -> None:
        traffic, loaded = self._fleet.routes(order)
        duration_ns = traffic.duration_ns(self._fleet.hardware)
        if order.weights_from is WeightsFrom.DISK:
            duration_ns += self._fleet.restart_ns
        own = loaded.get(self.name, LoadedBytes())
        self._done_after(
            order, duration_ns, ShapeDone,
            bytes_planned=own.planned, bytes_from_peers=own.from_peers,
            bytes_from_disk=own.from_disk, bytes_kept=own.kept,
        )  # fmt: skip

    def _copy(self, order: CopyKv | StopReplica) -> None:
        replica = self._fleet.find_replica(order.source.replica_id)
        if replica is None or replica.is_broken:
            self._fail(order, ShapeFailReason.UNKNOWN_REPLICA)
            return
        targets = [self._fleet.replica_of(target) for target in order.targets]
        replica.on_broken.append(lambda: self._fail(order, ShapeFailReason.BROKEN))
        if isinstance(order, CopyKv):
            self._copies.copy(replica, targets, lambda moved: self._answer(order, **moved))
        else:
            replica.is_serving = False
            self._copies.stop(
                replica, targets, until_ns=order.copy_until_unix_ns,
                on_done=lambda moved: self._answer(order, **moved),
            )  # fmt: skip

    def _resume(self, order: ResumeReplica) -> None:
        replica = self._fleet.find_replica(order.replica_id)
        if replica is None or replica.is_broken:
            self._fail(order, ShapeFailReason.UNKNOWN_REPLICA)
            return
        replica.is_serving = True
        replica.tokens_copied.clear()
        replica.engine.start()
        self._fleet.serves(replica)
        self._answer(order)

    def _activate(self, order: ActivateReplica) -> None:
        replica = self._fleet.find_replica(order.replica_id)
        if replica is None or self.staged is None or self.staged.replica_id != order.replica_id:
            self._fail(order, ShapeFailReason.UNKNOWN_REPLICA)
            return
        self.position, self.staged = self.staged, None
        self._weights_bytes = self._fleet.weight_bytes(self.position)
        replica.members_active.add(self.name)
        if replica.lead_id == self.name:
            replica.is_serving = True
            replica.engine.start()
            self._fleet.serves(replica)
        self._answer(order)

    def _release(self, order: ReleaseSessions) -> None:
        replica = self._fleet.find_replica(order.replica_id)
        if replica is None or replica.is_broken:
            self._fail(order, ShapeFailReason.UNKNOWN_REPLICA)
            return
        self._answer(order, sessions=self._fleet.release(replica, order.target_worker_ids))

    def _drop(self, order: DropReplica) -> None:
        if self.position is not None and self.position.replica_id == order.replica_id:
            self.position, self._weights_bytes = None, 0
        if self.staged is not None and self.staged.replica_id == order.replica_id:
            self.staged = None
        replica = self._fleet.find_replica(order.replica_id)
        if replica is not None and replica.lead_id == self.name:
            self._fleet.dropped(replica)
        self._answer(order)

    # ------------------------------------------------------------------ answers

    def _done_after(
        self, order: ToShape, duration_ns: int, answer: type[ShapeDone], **fields: int
    ) -> None:
        self.world.after(
            duration_ns,
            lambda: self.deliver(lambda: self._answer(order, duration_ns=duration_ns, **fields)),
        )

    def _answer(self, order: ToShape, **fields: str | int) -> None:
        self._settle(
            ShapeDone.model_validate(
                {
                    "worker_id": self.name,
                    "handover_id": order.handover_id,
                    "op_id": order.op_id,
                    **fields,
                }
            )
        )

    def _fail(self, order: ToShape, reason: ShapeFailReason) -> None:
        self._settle(
            ShapeFailed(
                worker_id=self.name,
                handover_id=order.handover_id,
                op_id=order.op_id,
                reason=reason,
            )
        )

    def _settle(self, answer: ToMigrator) -> None:
        """Answer, unless it has been answered: of several outcomes the first counts."""
        if self._answers.get(answer.op_id) is not None or self.life is Life.DEAD:
            return
        self._answers[answer.op_id] = answer
        self._fleet.answered(answer)

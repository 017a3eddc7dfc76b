"""A small world for planners: one store with compare-and-set, workers that report, virtual time."""

import heapq
from dataclasses import dataclass, field, replace
from typing import assert_never

from libs.contracts.placement import Placement, Policy
from libs.contracts.preemption import NoticeKind, NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import Market, ReportedPosition, RouterReport, WorkerReport
from libs.engine.model_config import ModelConfig
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.units import MIB, NS_PER_MS, NS_PER_S
from libs.policy.model_profile import LayerTimes, ModelBytes, ModelProfile
from libs.policy.parallel_config import SearchOptions
from libs.policy.placement_plan import PlanOptions
from libs.policy.shapes import ReplicaShape
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
    NoticeReceived,
    PlacementCommitted,
    PlacementConflict,
    PlacementRead,
    PlannerEvent,
    PlannerReported,
    PlannerStarted,
    RouterReported,
    StoreUnavailable,
    WithdrawalReceived,
    WorkerReported,
    WorkerUnreachable,
)
from services.planner.options import CapacityOptions, PlannerOptions

ALIAS = "tide-tiny"
BEAT_NS = 200 * NS_PER_MS
UNIX_NS = 1_800_000_000 * NS_PER_S
"""What the wall clock says when the world begins."""
_TIMES = LayerTimes(prefill_ns=((1, 1_000_000),), decode_ns=((1, 100_000), (8, 120_000)))
MODEL = ModelProfile(
    name="small",
    source="made up",
    size=ModelBytes(
        layers=8, heads=4, kv_heads=2, layer_bytes=8 * MIB, embedding_bytes=0, head_bytes=0,
        kv_bytes_per_token_layer=1024,
    ),
    times_by_shards={1: _TIMES, 2: _TIMES},
    embedding_ns=((1, 10_000),),
    hop_prefill_ns=100_000,
    hop_decode_ns=10_000,
    prompt_tokens=96,
    output_tokens=32,
)  # fmt: skip

PAIR = ReplicaShape(stages=2, shards=1)
FAST_PAIRS = replace(
    MODEL,
    times_by_shards={
        1: _TIMES,
        2: LayerTimes(
            prefill_ns=((1, 600_000),), decode_ns=((1, 60_000), (8, 90_000), (64, 500_000))
        ),
    },
)
"""Two shards are faster than one, but not twice as fast."""


def planner_options(
    planner_id: str,
    *,
    policy: Policy = Policy.TIDESERVE,
    shape: ReplicaShape | None = PAIR,
    capacity: CapacityOptions | None = None,
    model: ModelProfile = MODEL,
    cut: ModelConfig | None = None,
    nodes_expected: int = 0,
) -> PlannerOptions:
    return PlannerOptions(
        planner_id=planner_id,
        alias=ALIAS,
        profile=model,
        model=cut,
        plan=PlanOptions(policy=policy, search=SearchOptions(shape_only=shape)),
        capacity=capacity or CapacityOptions(),
        nodes_expected=nodes_expected,
    )


@dataclass
class Node:
    """A planner process: its core, and whether it runs, hangs or is cut off."""

    core: PlannerCore
    is_frozen: bool = False
    backlog: list[PlannerEvent] = field(default_factory=list)


@dataclass
class PlannerWorld:
    """Runs planner cores against one store; invariants are checked after every event."""

    now_ns: int = 0
    planners: dict[str, Node] = field(default_factory=dict)
    workers: dict[str, WorkerReport] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    sessions_accepted: int = 0
    history: list[Placement] = field(default_factory=list)
    """Everything that was ever committed, in order."""
    decisions: list[TellDecision] = field(default_factory=list)
    capacity: list[PublishCapacity] = field(default_factory=list)
    answers: list[AnswerPin] = field(default_factory=list)
    announced: list[Placement] = field(default_factory=list)
    stored: bytes | Placement | None = None
    revision: int = 0
    is_store_away: bool = False
    loses_next_receipt: bool = False
    """The next write is made, and nobody is told."""
    is_broker_away: bool = False
    _queue: list[tuple[int, int, str, PlannerEvent]] = field(default_factory=list)
    _timers: dict[tuple[str, str], int] = field(default_factory=dict)
    _sequence: int = 0
    _beat_at_ns: int = BEAT_NS

    # ------------------------------------------------------------------ what a test does

    def add_planner(self, planner_id: str, **fields: object) -> PlannerCore:
        core = PlannerCore(planner_options(planner_id, **fields))  # type: ignore[arg-type]
        self.planners[planner_id] = Node(core=core)
        self.tell(
            planner_id,
            PlannerStarted(now_unix_ns=UNIX_NS + self.now_ns, cause_id=planner_id),
        )
        return core

    def kill_planner(self, planner_id: str) -> None:
        del self.planners[planner_id]

    def freeze(self, planner_id: str) -> None:
        self.planners[planner_id].is_frozen = True

    def wake(self, planner_id: str) -> None:
        """Let it handle everything that came in the meantime, in order."""
        planner = self.planners[planner_id]
        planner.is_frozen = False
        backlog, planner.backlog = planner.backlog, []
        for event in backlog:
            self.tell(planner_id, event)

    def add_worker(self, worker_id: str, **fields: object) -> None:
        report = WorkerReport(
            worker_id=worker_id,
            beat=0,
            alias=ALIAS,
            process_id=1,
            context_tokens_max=2048,
            vocabulary_size=2048,
            block_tokens=16,
            blocks_total=0,
            blocks_free=0,
            sessions_running=0,
            sessions_waiting=0,
            tokens_waiting=0,
            tokens_generated=0,
            steps=0,
            step_ms_recent=0.0,
            node_id=f"node-{worker_id}",
            zone="zone-a",
            market=Market.SPOT,
            is_planned=True,
            is_serving=False,
            memory_bytes=2**30,
        ).model_copy(update=fields)
        self.workers[worker_id] = report
        self.broadcast(WorkerReported(report=report, cause_id=worker_id))

    def change_worker(self, worker_id: str, **fields: object) -> None:
        self.workers[worker_id] = self.workers[worker_id].model_copy(update=fields)

    def kill_worker(self, worker_id: str) -> None:
        del self.workers[worker_id]

    def hang_worker(self, worker_id: str) -> None:
        """It stays connected and says nothing any more."""
        del self.workers[worker_id]
        self.hanging.add(worker_id)

    def notice(
        self,
        node_id: str,
        *,
        grace_s: float | None = 30,
        notice_id: str = "n-1",
        kind: NoticeKind = NoticeKind.PREEMPTION,
    ) -> None:
        heard = PreemptionNotice(
            notice_id=notice_id,
            node_id=node_id,
            kind=kind,
            source="test",
            observed_at_unix_ns=0,
            grace_ns=None if grace_s is None else round(grace_s * NS_PER_S),
        )
        self.broadcast(NoticeReceived(notice=heard, cause_id=notice_id))

    def withdraw(self, node_id: str, *, notice_id: str = "n-1") -> None:
        withdrawal = NoticeWithdrawn(
            notice_id=notice_id, node_id=node_id, kind=NoticeKind.PREEMPTION, source="test"
        )
        self.broadcast(WithdrawalReceived(withdrawal=withdrawal, cause_id=notice_id))

    def migrate(self) -> None:
        """What the migrator would do: every worker computes what the placement says."""
        placement = self.placement
        positions = {
            worker_id: ReportedPosition(
                replica_id=replica.replica_id,
                replica_epoch=replica.replica_epoch,
                stages=replica.stages,
                shards=replica.shards,
                stage=rank // replica.shards,
                shard=rank % replica.shards,
            )
            for replica in placement.replicas
            for rank, worker_id in enumerate(replica.worker_ids)
        }
        for worker_id in sorted(self.workers):
            self.change_worker(worker_id, position=positions.get(worker_id))

    def run(self, *, seconds: float) -> None:
        """Let time pass."""
        end_ns = self.now_ns + round(seconds * NS_PER_S)
        while True:
            at_ns = min(self._beat_at_ns, self._queue[0][0] if self._queue else self._beat_at_ns)
            if at_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, at_ns)
            if at_ns == self._beat_at_ns:
                self._beat_at_ns += BEAT_NS
                self._report_all()
                continue
            _, _, planner_id, event = heapq.heappop(self._queue)
            self._fire(planner_id, event)
        self.now_ns = end_ns

    # ------------------------------------------------------------------ what it sees

    @property
    def placement(self) -> Placement:
        assert isinstance(self.stored, Placement), self.stored
        return self.stored

    @property
    def leaders(self) -> list[str]:
        return [i for i, planner in self.planners.items() if planner.core.leadership.is_leading]

    def shapes(self) -> dict[str, tuple[str, ...]]:
        return {r.replica_id: r.worker_ids for r in self.placement.replicas}

    def told(self, decision: str) -> list[dict[str, object]]:
        return [dict(d.fields) for d in self.decisions if d.decision == decision]

    # ------------------------------------------------------------------ how it works

    def broadcast(self, event: PlannerEvent) -> None:
        if not self.is_broker_away:
            for planner_id in list(self.planners):
                self.tell(planner_id, event)

    def tell(self, planner_id: str, event: PlannerEvent) -> None:
        planner = self.planners.get(planner_id)
        if planner is None:
            return
        if planner.is_frozen:
            planner.backlog.append(event)
            return
        commands = planner.core.handle(event, now_ns=self.now_ns)
        planner.core.check_invariants()
        for command in commands:
            self._perform(planner_id, command)

    def _perform(self, planner_id: str, command: PlannerCommand) -> None:
        match command:
            case SetTimer():
                at_ns = self.now_ns + command.after_ns
                self._timers[planner_id, command.key] = at_ns
                self._at(at_ns, planner_id, TimerFired(key=command.key, cause_id=command.cause_id))
            case ReadPlacement() | CommitPlacement():
                # Stored when the command is given, answered later: as a network would.
                self._at(self.now_ns + NS_PER_MS, planner_id, self._stored(command))
            case PublishReport():
                self.broadcast(
                    PlannerReported(
                        report=command.report,
                        received_at_unix_ns=UNIX_NS + self.now_ns,
                        cause_id=planner_id,
                    )
                )
            case PingWorker(worker_id=worker_id):
                is_listening = worker_id in self.workers or worker_id in self.hanging
                if not is_listening and not self.is_broker_away:
                    unreachable = WorkerUnreachable(worker_id=worker_id, cause_id=command.cause_id)
                    self._at(self.now_ns + NS_PER_MS, planner_id, unreachable)
            case AnnouncePlacement():
                self.announced.append(command.placement)
            case PublishCapacity():
                self.capacity.append(command)
            case AnswerPin():
                self.answers.append(command)
            case TellDecision():
                self.decisions.append(command)
            case _:
                assert_never(command)

    def _stored(self, command: ReadPlacement | CommitPlacement) -> PlannerEvent:
        op_id, cause_id = command.op_id, command.cause_id
        if self.is_store_away or self.is_broker_away:
            return StoreUnavailable(op_id=op_id, cause_id=cause_id)
        revision = None if self.stored is None else self.revision
        if isinstance(command, ReadPlacement):
            placement = self.stored if isinstance(self.stored, Placement) else None
            return PlacementRead(
                op_id=op_id,
                placement=placement,
                revision=revision,
                is_unreadable=isinstance(self.stored, bytes),
                cause_id=cause_id,
            )
        if command.revision != revision:
            return PlacementConflict(op_id=op_id, cause_id=cause_id)
        self.revision += 1
        self.stored = command.placement
        self.history.append(command.placement)
        if self.loses_next_receipt:
            self.loses_next_receipt = False
            return StoreUnavailable(op_id=op_id, cause_id=cause_id)
        return PlacementCommitted(op_id=op_id, revision=self.revision, cause_id=cause_id)

    def _at(self, at_ns: int, planner_id: str, event: PlannerEvent) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (at_ns, self._sequence, planner_id, event))

    def _fire(self, planner_id: str, event: PlannerEvent) -> None:
        if (
            isinstance(event, TimerFired)
            and self._timers.get((planner_id, event.key)) != self.now_ns
        ):
            return  # set anew since
        self.tell(planner_id, event)

    def _report_all(self) -> None:
        for report in list(self.workers.values()):
            self.broadcast(WorkerReported(report=report, cause_id=report.worker_id))
        router = RouterReport(
            router_id="router-1",
            beat=0,
            journal_id="router-1-1",
            process_id=2,
            sessions_open=0,
            sessions_accepted=self.sessions_accepted,
        )
        self.broadcast(RouterReported(report=router, cause_id="router-1"))


def a_world_with(*worker_ids: str, **fields: object) -> PlannerWorld:
    """A planner that leads, and workers that compute what it has placed."""
    world = PlannerWorld()
    for worker_id in worker_ids:
        world.add_worker(worker_id)
    world.add_planner("p1", **fields)
    world.run(seconds=2)
    if world.placement.replicas:
        world.migrate()
        world.run(seconds=1)
    return world

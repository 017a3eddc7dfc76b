"""Whatever migrators, peers and the engine do, and in whatever order: at most two positions, one of
which serves; each command is answered once it is over, always with the same answer; nothing that
runs is lost without its router being told."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    PlacedWorker,
    ReleaseSessions,
    ReplicaRoster,
    ResumeReplica,
    ShapeDone,
    ShapeFailReason,
    StagePosition,
    StopReplica,
    ToMigrator,
)
from libs.contracts.online import SamplingParameters
from libs.contracts.sessions import SessionRefused, SessionSpec, StartSession
from libs.engine.scheduler import SchedulerOptions
from libs.engine.simulated_runner import SimulatedRunner
from libs.kernel.core import SetTimer, TimerFired
from services.gpu_worker.commands import (
    AllocatePosition,
    AnswerMigrator,
    CopyBlocks,
    FormGroup,
    FreePosition,
    LoadPosition,
    RunStep,
    SendTokens,
    SendToRouter,
    StopProcess,
    WorkerCommand,
)
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.events import (
    BlocksCopied,
    GroupFormed,
    KvCommitted,
    KvDropped,
    KvOffered,
    PeerLost,
    PositionAllocated,
    PositionFreed,
    PositionLoaded,
    PositionWorkFailed,
    ShapeReceived,
    StartReceived,
    StepFailed,
    StepFinished,
    WorkerEvent,
    WorkerStarted,
)
from services.gpu_worker.options import WorkerOptions

EOS = frozenset({0})
BLOCKS = 24
ENGINE = SchedulerOptions(
    step_tokens_max=8,
    sequences_max=3,
    block_tokens=2,
    blocks_total=16,
    context_tokens_max=32,
    eos_token_ids=EOS,
)
OPTIONS = WorkerOptions(
    worker_id="w-1",
    alias="tide",
    process_id=1,
    vocabulary_size=40,
    engine=ENGINE,
    is_planned=True,
)
REPLICAS = ("replica-1", "replica-2", "replica-3")
SHAPES = {"replica-1": ("w-1",), "replica-2": ("w-1", "w-2"), "replica-3": ("w-2", "w-1")}
"""Alone; as the lead of two shards; as the member of two."""
WORK = (AllocatePosition, LoadPosition, FormGroup, CopyBlocks, FreePosition)
KINDS = (
    StagePosition,
    LoadWeights,
    FormReplica,
    CopyKv,
    StopReplica,
    ResumeReplica,
    ActivateReplica,
    ReleaseSessions,
    DropReplica,
)


def a_roster(replica_id: str) -> ReplicaRoster:
    worker_ids = SHAPES[replica_id]
    return ReplicaRoster(
        replica_id=replica_id,
        replica_epoch=1,
        stages=1,
        shards=len(worker_ids),
        workers=tuple(
            PlacedWorker(worker_id=worker_id, peer_address="here", stage=0, shard=shard)
            for shard, worker_id in enumerate(worker_ids)
        ),
    )


def a_command(kind: type[Any], replica_id: str, *, op: int, epoch: int) -> Any:
    roster = a_roster(replica_id)
    heir = a_roster(REPLICAS[(REPLICAS.index(replica_id) + 1) % len(REPLICAS)])
    fields: dict[str, Any] = {"replica_id": replica_id}
    if kind is StagePosition:
        fields = {"replica": roster}
    elif kind in (CopyKv, StopReplica):
        fields = {"source": roster, "targets": (heir,)}
    elif kind is FormReplica:
        fields |= {"rendezvous": "r", "kv_blocks": BLOCKS}
    return kind(
        handover_id="handover",
        handover_epoch=epoch,
        migrator_id="migrator",
        op_id=f"op-{op}",
        plan_revision=1,
        **fields,
    )


@dataclass
class World:
    """A worker, and everything that it has asked for and not been told the end of."""

    core: WorkerCore = field(default_factory=lambda: WorkerCore(OPTIONS, None))
    work: list[WorkerCommand] = field(default_factory=list)
    steps: list[RunStep] = field(default_factory=list)
    timers: set[str] = field(default_factory=set)
    runners: dict[str, SimulatedRunner] = field(default_factory=dict)
    answers: dict[str, ToMigrator] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    hosted: set[str] = field(default_factory=set)
    now_ns: int = 0
    sessions: int = 0
    is_over: bool = False

    def handle(self, event: WorkerEvent) -> None:
        self.now_ns += 1_000
        for command in self.core.handle(event, now_ns=self.now_ns):
            self._note(command)
        self.core.check_invariants()

    def _note(self, command: WorkerCommand) -> None:
        match command:
            case RunStep():
                self.steps.append(command)
            case AnswerMigrator(message=answer):
                # That one owner is stale says nothing of the command of another.
                if isinstance(answer, ShapeDone) or answer.reason is not ShapeFailReason.STALE:
                    known = self.answers.setdefault(answer.op_id, answer)
                    assert known == answer, "one command, two answers"
            case SendToRouter(message=SessionRefused() as refusal):
                self.running.discard(refusal.request_id)
            case SendTokens(step=step):
                for entry in step.entries:
                    if entry.finish_reason is not None:
                        self.running.discard(entry.request_id)
            case SetTimer(key=key):
                self.timers.add(key)
            case StopProcess():
                self.is_over = True
            case AllocatePosition(replica=replica):
                # Freed and allocated in the order in which it was asked for.
                self.hosted.add(replica.replica_id)
                assert len(self.hosted) <= 2, "a third position is hosted"
                self.runners[replica.replica_id] = SimulatedRunner(
                    vocabulary_size=40, eos_token_ids=EOS
                )
                self.work.append(command)
            case FreePosition(replica_id=replica_id):
                self.hosted.discard(replica_id)
                self.work.append(command)
            case LoadPosition() | FormGroup() | CopyBlocks():
                self.work.append(command)

    def command(self, kind: type[Any], replica_id: str, *, op: int, epoch: int = 2) -> None:
        message = a_command(kind, replica_id, op=op, epoch=epoch)
        self.handle(ShapeReceived(message=message, cause_id="migrator"))

    def start_session(self) -> None:
        self.sessions += 1
        spec = SessionSpec(
            request_id=f"r-{self.sessions}",
            alias="tide",
            prompt_token_ids=(1, 2, 3, self.sessions % 40),
            max_tokens=12,
            sampling=SamplingParameters(temperature=0.0),
            ignore_eos=True,
        )
        self.running.add(spec.request_id)
        start = StartSession(router_id="router", session_epoch=1, spec=spec)
        self.handle(StartReceived(message=start, cause_id="start"))

    def end_step(self, *, is_failing: bool) -> None:
        if not self.steps:
            return
        step = self.steps.pop(0)
        name = {"op_id": step.op_id, "cause_id": "step"}
        if is_failing and len(SHAPES[step.replica_id]) > 1:
            self.handle(StepFailed(replica_id=step.replica_id, reason="peer", **name))
            return
        result = self.runners[step.replica_id].run(step.plan)
        self.handle(StepFinished(result=result, duration_ns=1, **name))

    def end_work(self, index: int, *, is_failing: bool) -> None:
        if not self.work:
            return
        command: Any = self.work.pop(index % len(self.work))
        name = {"op_id": command.op_id, "cause_id": "work"}
        if is_failing and not isinstance(command, FreePosition):
            reason = ShapeFailReason.PEER_LOST
            if isinstance(command, AllocatePosition):
                self.hosted.discard(command.replica.replica_id)
            self.handle(PositionWorkFailed(reason=reason, message="", **name))
            return
        match command:
            case AllocatePosition():
                self.handle(PositionAllocated(kv_blocks=BLOCKS, rendezvous="r", **name))
            case LoadPosition():
                numbers = dict.fromkeys(
                    ("weights_bytes", "bytes_planned", "bytes_from_peers", "bytes_from_disk"), 1
                )
                loaded = PositionLoaded(
                    bytes_kept=0, link_rates=(), duration_ns=1, **numbers, **name
                )
                self.handle(loaded)
            case FormGroup():
                self.handle(GroupFormed(**name))
            case FreePosition():
                self.handle(PositionFreed(weights_bytes=0, **name))
            case CopyBlocks(blocks=blocks):
                numbers = dict.fromkeys(("bytes_planned", "bytes_moved", "bytes_copied_here"), 0)
                held = tuple(block_hash for block_hash, _ in blocks)
                copied = BlocksCopied(
                    hashes_held=held,
                    blocks_moved=len(held),
                    link_rates=(),
                    duration_ns=1,
                    **numbers,
                    **name,
                )
                self.handle(copied)

    def bring_kv(self, replica_id: str, number: int) -> None:
        name = {
            "replica_id": replica_id,
            "replica_epoch": 1,
            "ticket_id": f"t-{number}",
            "cause_id": "peer",
        }
        hashes = tuple(range(number * 7, number * 7 + 5))
        self.handle(KvOffered(op_id="offer", hashes=hashes, **name))
        self.handle(KvCommitted(hashes=hashes[: number % 6], **name))
        if number % 3:
            self.handle(KvDropped(**name))

    def lose_peer(self, replica_id: str) -> None:
        self.handle(
            PeerLost(
                replica_id=replica_id,
                replica_epoch=1,
                worker_id="w-2",
                reason="gone",
                cause_id="peer",
            )
        )

    def settle(self) -> None:
        """Let all that is under way come to its end."""
        for _ in range(200):
            if self.is_over or not (self.work or self.steps):
                return
            self.end_work(0, is_failing=False)
            self.end_step(is_failing=False)
        raise AssertionError("it never comes to rest")


COMMANDS = st.tuples(
    st.just("command"),
    st.sampled_from(KINDS),
    st.sampled_from(REPLICAS),
    st.integers(0, 40),
    st.sampled_from([1, 1, 1, 1, 2]),
)
"""Mostly of one owner; op ids may come twice, as repetitions do."""
PREPARE = st.tuples(st.just("prepare"), st.sampled_from(REPLICAS))
RETIRE = st.tuples(st.just("retire"), st.sampled_from(REPLICAS), st.booleans())
DISTURBANCES = st.one_of(
    st.tuples(st.just("start")),
    st.tuples(st.just("start")),
    st.tuples(st.just("step"), st.booleans()),
    st.tuples(st.just("work"), st.integers(0, 5), st.sampled_from([False, False, True])),
    st.tuples(st.just("kv"), st.sampled_from(REPLICAS), st.integers(0, 9)),
    st.tuples(st.just("lost"), st.sampled_from(REPLICAS)),
    st.tuples(st.just("time")),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(COMMANDS, PREPARE, RETIRE, DISTURBANCES, DISTURBANCES), max_size=80))
def test_a_worker_keeps_its_promises_whatever_it_is_told(actions: list[Any]) -> None:
    world = World()
    world.handle(WorkerStarted(cause_id="start"))
    kinds: dict[int, tuple[Any, str]] = {}
    prepared = 0
    for action in actions:
        if world.is_over:
            return
        match action:
            case ("command", kind, replica_id, op, epoch):
                kind, replica_id = kinds.setdefault(op, (kind, replica_id))
                world.command(kind, replica_id, op=op, epoch=epoch)
            case ("prepare", replica_id):
                for kind in (StagePosition, LoadWeights, FormReplica, ActivateReplica):
                    prepared += 1
                    world.command(kind, replica_id, op=1000 + prepared)
                    world.end_work(len(world.work) - 1, is_failing=False)
            case ("retire", replica_id, is_releasing):
                for kind in (StopReplica, ReleaseSessions, DropReplica):
                    prepared += 1
                    if is_releasing or kind is not ReleaseSessions:
                        world.command(kind, replica_id, op=1000 + prepared)
                    world.settle()
            case ("start",):
                world.start_session()
            case ("step", is_failing):
                world.end_step(is_failing=is_failing)
            case ("work", index, is_failing):
                world.end_work(index, is_failing=is_failing)
            case ("kv", replica_id, number):
                world.bring_kv(replica_id, number)
            case ("lost", replica_id):
                world.lose_peer(replica_id)
            case ("time",):
                for key in sorted(world.timers):
                    world.timers.discard(key)
                    world.handle(TimerFired(key=key, cause_id="time"))
    world.settle()
    if world.is_over:
        return
    held = world.core.position_of
    stopped = [r for r in REPLICAS if (p := held(r)) is not None and p.phase == "stopped"]
    assert not world.running or stopped, "a session stands still and nobody was told"

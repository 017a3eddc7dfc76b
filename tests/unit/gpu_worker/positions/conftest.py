"""Planned workers without a world: the test is migrator, router, network and engine."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    MovingTerms,
    PlacedWorker,
    ReleaseSessions,
    ReplicaRoster,
    ShapeDone,
    ShapeFailed,
    StagePosition,
    StopReplica,
    ToMigrator,
    ToShape,
)
from libs.contracts.sessions import AcknowledgeTokens, SessionRefused, StartSession, TokenReceipt
from libs.contracts.token_step import SessionTokens
from libs.engine.scheduler import SchedulerOptions
from libs.engine.simulated_runner import SimulatedRunner
from libs.engine.steps import StepResult
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.units import NS_PER_MS
from services.gpu_worker.commands import (
    AllocatePosition,
    AnswerMigrator,
    AnswerPeer,
    BreakGroup,
    CopyBlocks,
    FormGroup,
    FreePosition,
    LoadPosition,
    PublishReport,
    RunStep,
    SendTokens,
    SendToRouter,
    StopProcess,
    WorkerCommand,
)
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.events import (
    AcknowledgeReceived,
    BlocksCopied,
    GroupFormed,
    KvCommitted,
    KvDropped,
    KvOffered,
    PlanReceived,
    PositionAllocated,
    PositionFreed,
    PositionLoaded,
    ShapeReceived,
    StartReceived,
    StepFinished,
    WorkerEvent,
    WorkerStarted,
)
from services.gpu_worker.options import WorkerOptions

BLOCK_TOKENS = 4
CONTEXT_TOKENS = 128
VOCABULARY = 1000
EOS = frozenset({0})


class PlannedWorker:
    """One core; what it asks of its engine is done at once, save steps and copies."""

    def __init__(self, worker_id: str, *, kv_blocks: int = 64, **changes: Any) -> None:
        engine = SchedulerOptions(
            step_tokens_max=64,
            sequences_max=8,
            block_tokens=BLOCK_TOKENS,
            blocks_total=CONTEXT_TOKENS // BLOCK_TOKENS,
            context_tokens_max=CONTEXT_TOKENS,
            eos_token_ids=EOS,
        )
        self.worker_id = worker_id
        self.options = WorkerOptions(
            worker_id=worker_id,
            alias="tide",
            process_id=1,
            vocabulary_size=VOCABULARY,
            engine=engine,
            is_planned=True,
            node_id="node-a",
            **changes,
        )
        self.kv_blocks = kv_blocks
        self.core = WorkerCore(self.options, None)
        self.now_ns = 0
        self.timers: dict[str, int] = {}
        self.runners: dict[str, SimulatedRunner] = {}
        self.steps: list[RunStep] = []
        self.copies: list[CopyBlocks] = []
        self.held_up: list[WorkerCommand] = []
        self.is_holding_up = False
        """Keeps allocation, loading, forming and freeing from being done."""
        self.answers: list[ToMigrator] = []
        self.peer_answers: list[AnswerPeer] = []
        self.refusals: list[SessionRefused] = []
        self.reports: list[Any] = []
        self.is_acknowledging = True
        self.tokens: dict[str, list[int]] = {}
        self.finished: set[str] = set()
        self.broken: list[str] = []
        self.stopped: StopProcess | None = None
        self.handle(WorkerStarted(cause_id="start"))

    @property
    def report(self) -> Any:
        """The newest report."""
        return self.reports[-1]

    def handle(self, event: WorkerEvent) -> None:
        commands = self.core.handle(event, now_ns=self.now_ns)
        self.core.check_invariants()
        for command in commands:
            self._perform(command)

    def _perform(self, command: WorkerCommand) -> None:
        match command:
            case RunStep():
                self.steps.append(command)
            case CopyBlocks():
                self.copies.append(command)
            case AnswerMigrator(message=message):
                self.answers.append(message)
            case AnswerPeer():
                self.peer_answers.append(command)
            case SendToRouter(message=SessionRefused() as refusal):
                self.refusals.append(refusal)
            case SendTokens(step=step):
                for entry in step.entries:
                    self._take_tokens(entry)
            case PublishReport(report=report):
                self.reports.append(report)
            case SetTimer(key=key, after_ns=after_ns):
                self.timers[key] = self.now_ns + after_ns
            case BreakGroup(replica_id=replica_id):
                self.broken.append(replica_id)
            case StopProcess():
                self.stopped = command
            case AllocatePosition() | LoadPosition() | FormGroup() | FreePosition():
                if self.is_holding_up:
                    self.held_up.append(command)
                else:
                    self.do(command)
            case SendToRouter():
                pass

    def do(self, command: WorkerCommand) -> None:
        """Do what takes a while in the world."""
        match command:
            case AllocatePosition(op_id=op_id, replica=replica):
                self.runners[replica.replica_id] = SimulatedRunner(
                    vocabulary_size=VOCABULARY, eos_token_ids=EOS
                )
                self.handle(
                    PositionAllocated(
                        op_id=op_id, kv_blocks=self.kv_blocks, rendezvous="here", cause_id="w"
                    )
                )
            case LoadPosition(op_id=op_id):
                self.handle(
                    PositionLoaded(
                        op_id=op_id,
                        weights_bytes=100,
                        bytes_planned=100,
                        bytes_from_peers=60,
                        bytes_from_disk=40,
                        bytes_kept=7,
                        link_rates=(),
                        duration_ns=5,
                        cause_id="w",
                    )
                )
            case FormGroup(op_id=op_id):
                self.handle(GroupFormed(op_id=op_id, cause_id="w"))
            case FreePosition(op_id=op_id):
                self.handle(PositionFreed(op_id=op_id, weights_bytes=0, cause_id="w"))
            case _:
                raise AssertionError(command)

    def command(self, message: ToShape) -> None:
        self.handle(ShapeReceived(message=message, cause_id=message.op_id))

    def start(self, message: StartSession) -> None:
        self.tokens[message.spec.request_id] = list(message.generated_token_ids)
        self.handle(StartReceived(message=message, cause_id=message.spec.request_id))

    def finish_step(self) -> None:
        """Run the oldest step; a member's result is nothing."""
        step = self.steps.pop(0)
        result: StepResult | None = self.runners[step.replica_id].run(step.plan)
        if not self.is_lead_of(step.replica_id):
            result = None
        self.handle(
            StepFinished(op_id=step.op_id, result=result, duration_ns=NS_PER_MS, cause_id="s")
        )

    def finish_steps(self, count: int) -> None:
        for _ in range(count):
            self.finish_step()

    def is_lead_of(self, replica_id: str) -> bool:
        position = self.core.position_of(replica_id)
        return position is not None and position.is_lead

    def advance(self, duration_ms: int) -> None:
        """Let time pass with its timers, in order."""
        end_ns = self.now_ns + duration_ms * NS_PER_MS
        while due := [(at, key) for key, at in self.timers.items() if at <= end_ns]:
            self.now_ns, key = min(due)
            del self.timers[key]
            self.handle(TimerFired(key=key, cause_id="timer"))
        self.now_ns = end_ns

    def _take_tokens(self, entry: SessionTokens) -> None:
        tokens = self.tokens.setdefault(entry.request_id, [])
        fresh = len(tokens) - entry.first_index
        tokens += entry.token_ids[fresh:]
        if entry.finish_reason is not None:
            self.finished.add(entry.request_id)
        if not self.is_acknowledging:
            return
        receipt = TokenReceipt(
            request_id=entry.request_id, session_epoch=entry.session_epoch, next_index=len(tokens)
        )
        message = AcknowledgeTokens(router_id="router-a", receipts=(receipt,))
        self.handle(AcknowledgeReceived(message=message, cause_id="ack"))


class HandOver:
    """A migrator's commands to some workers, each under an op_id of its own."""

    def __init__(self, *workers: PlannedWorker, epoch: int = 1, revision: int = 1) -> None:
        self.workers = {worker.worker_id: worker for worker in workers}
        self.epoch = epoch
        self.revision = revision
        self._ops = 0

    def ask(self, worker: PlannedWorker, kind: type[Any], **fields: Any) -> Any:
        """Send one command; return its answer, or None if there is none yet."""
        self._ops += 1
        return self.ask_again(worker, kind, op_id=f"op-{self.epoch}-{self._ops}", **fields)

    def ask_again(
        self, worker: PlannedWorker, kind: type[Any], *, op_id: str, **fields: Any
    ) -> Any:
        """Send a command under an op_id that may have been used."""
        known = len(worker.answers)
        head = {
            "handover_id": "handover-1",
            "handover_epoch": self.epoch,
            "migrator_id": "migrator-a",
            "op_id": op_id,
            "plan_revision": self.revision,
        }
        worker.command(kind(**head, **fields))
        return worker.answers[-1] if len(worker.answers) > known else None

    def done(self, worker: PlannedWorker, kind: type[Any], **fields: Any) -> ShapeDone:
        """Send one command, which must be carried out at once."""
        answer = self.ask(worker, kind, **fields)
        assert isinstance(answer, ShapeDone), answer
        return answer

    def refused(self, worker: PlannedWorker, kind: type[Any], **fields: Any) -> str:
        """Send one command, which must be refused; return why."""
        answer = self.ask(worker, kind, **fields)
        assert isinstance(answer, ShapeFailed), answer
        return answer.reason.value

    def stage(self, roster: ReplicaRoster) -> None:
        for worker in self.members_of(roster):
            self.done(worker, StagePosition, replica=roster)

    def load(self, roster: ReplicaRoster) -> None:
        for worker in self.members_of(roster):
            self.done(worker, LoadWeights, replica_id=roster.replica_id)

    def form(self, roster: ReplicaRoster, *, kv_blocks: int | None = None) -> None:
        kv_blocks = kv_blocks or min(worker.kv_blocks for worker in self.members_of(roster))
        for worker in self.members_of(roster):
            fields = {"replica_id": roster.replica_id, "rendezvous": "r", "kv_blocks": kv_blocks}
            self.done(worker, FormReplica, **fields)

    def activate(self, roster: ReplicaRoster) -> None:
        for worker in self.members_of(roster):
            self.done(worker, ActivateReplica, replica_id=roster.replica_id)

    def prepare(self, roster: ReplicaRoster) -> None:
        """Bring a replica up to where only its activation is missing."""
        self.stage(roster)
        self.load(roster)
        self.form(roster)

    def serve(self, roster: ReplicaRoster) -> PlannedWorker:
        """Bring a replica up; return its lead."""
        self.prepare(roster)
        self.activate(roster)
        return self.lead_of(roster)

    def copy(
        self, source: ReplicaRoster, *targets: ReplicaRoster, terms: MovingTerms | None = None
    ) -> ShapeDone:
        """Copy what the targets lack; return the answer."""
        lead = self.lead_of(source)
        answer = self.ask(lead, CopyKv, source=source, targets=targets, terms=terms)
        return self._after_copies(lead, answer)

    def stop(
        self, source: ReplicaRoster, *targets: ReplicaRoster, terms: MovingTerms | None = None
    ) -> ShapeDone:
        """Stop, and copy what is left."""
        lead = self.lead_of(source)
        answer = self.ask(lead, StopReplica, source=source, targets=targets, terms=terms)
        if lead.steps:
            assert answer is None
            known = len(lead.answers)
            lead.finish_step()
            answer = lead.answers[-1] if len(lead.answers) > known else None
        return self._after_copies(lead, answer)

    def release(self, source: ReplicaRoster, *targets: ReplicaRoster) -> ShapeDone:
        leads = tuple(self.lead_of(target).worker_id for target in targets)
        return self.done(
            self.lead_of(source),
            ReleaseSessions,
            replica_id=source.replica_id,
            target_worker_ids=leads,
        )

    def drop(self, roster: ReplicaRoster) -> None:
        for worker in self.members_of(roster):
            self.done(worker, DropReplica, replica_id=roster.replica_id)

    def members_of(self, roster: ReplicaRoster) -> list[PlannedWorker]:
        return [self.workers[worker.worker_id] for worker in roster.workers]

    def lead_of(self, roster: ReplicaRoster) -> PlannedWorker:
        assert roster.lead is not None
        return self.workers[roster.lead.worker_id]

    def carry(self, copy: CopyBlocks) -> tuple[int, ...]:
        """Be the network between two leads: offer, send, commit; return what was sent."""
        target = self.lead_of(copy.target)
        name = {
            "replica_id": copy.target.replica_id,
            "replica_epoch": copy.target.replica_epoch,
            "ticket_id": copy.op_id,
            "cause_id": copy.op_id,
        }
        hashes = tuple(block_hash for block_hash, _ in copy.blocks)
        target.handle(KvOffered(op_id="offer", hashes=hashes, **name))
        wanted = tuple(block_hash for block_hash, _ in target.peer_answers.pop().blocks)
        target.handle(KvCommitted(hashes=wanted, **name))
        target.handle(KvDropped(**name))
        return wanted

    @staticmethod
    def copied(copy: CopyBlocks, *, blocks_moved: int) -> BlocksCopied:
        """The outcome of a copy in which the target got all that it wanted."""
        return BlocksCopied(
            op_id=copy.op_id,
            hashes_held=tuple(block_hash for block_hash, _ in copy.blocks),
            blocks_moved=blocks_moved,
            bytes_planned=10 * blocks_moved,
            bytes_moved=10 * blocks_moved,
            bytes_copied_here=0,
            link_rates=(),
            duration_ns=1,
            cause_id="copy",
        )

    def _after_copies(self, lead: PlannedWorker, answer: Any) -> ShapeDone:
        while lead.copies:
            copy = lead.copies.pop(0)
            wanted = self.carry(copy)
            lead.handle(self.copied(copy, blocks_moved=len(wanted)))
            answer = lead.answers[-1]
        assert isinstance(answer, ShapeDone), answer
        return answer


def build_roster(
    replica_id: str, *worker_ids: str, stages: int = 1, shards: int = 1, epoch: int = 1
) -> ReplicaRoster:
    workers = tuple(
        PlacedWorker(
            worker_id=worker_id,
            peer_address=f"loopback://{worker_id}",
            stage=rank // shards,
            shard=rank % shards,
        )
        for rank, worker_id in enumerate(worker_ids)
    )
    return ReplicaRoster(
        replica_id=replica_id, replica_epoch=epoch, stages=stages, shards=shards, workers=workers
    )


def relay_plan(lead: PlannedWorker, member: PlannedWorker) -> None:
    """Be the step link: bring the lead's newest plan to a member."""
    step = lead.steps[-1]
    position = lead.core.position_of(step.replica_id)
    assert position is not None
    member.handle(
        PlanReceived(
            replica_id=step.replica_id,
            replica_epoch=position.roster.replica_epoch,
            plan=step.plan,
            cause_id="plan",
        )
    )


@pytest.fixture
def a_planned_worker() -> Callable[..., PlannedWorker]:
    """Build a started worker that holds no position."""
    return PlannedWorker


@pytest.fixture
def a_hand_over() -> Callable[..., HandOver]:
    """Build a migrator over some workers."""
    return HandOver


@pytest.fixture
def a_roster() -> Callable[..., ReplicaRoster]:
    """Build a replica from an id and its workers in the order of ranks."""
    return build_roster


@pytest.fixture
def bring_plan() -> Callable[[PlannedWorker, PlannedWorker], None]:
    """Bring the lead's newest plan to a member."""
    return relay_plan

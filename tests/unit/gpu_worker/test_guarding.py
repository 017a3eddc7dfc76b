"""Copies of running sessions' KV to another node: to whom, of what, and how fast."""

from typing import Any

import pytest

from libs.contracts.handover import ShapeFailReason
from libs.contracts.reports import ReportedPosition, WorkerReport
from libs.contracts.sessions import StartSession
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.simulated_runner import SimulatedRunner
from libs.kernel.units import NS_PER_MS, NS_PER_S
from services.gpu_worker.commands import CopyBlocks, RunStep
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.events import (
    BlocksCopied,
    PeerReported,
    PositionWorkFailed,
    StartReceived,
    StepFinished,
    WorkerEvent,
    WorkerStarted,
)
from services.gpu_worker.options import WorkerOptions
from tests.unit.gpu_worker.conftest import build_start

BLOCK_BYTES = 1000
ENGINE = SchedulerOptions(
    step_tokens_max=64,
    sequences_max=8,
    block_tokens=4,
    blocks_total=64,
    context_tokens_max=128,
    eos_token_ids=frozenset(),
)


class Guarded:
    """A worker on node-a that may send so many bytes per second."""

    def __init__(self, *, bytes_per_s: int = 100 * BLOCK_BYTES) -> None:
        options = WorkerOptions(
            worker_id="worker-b",
            alias="tide",
            process_id=7,
            vocabulary_size=1000,
            engine=ENGINE,
            node_id="node-b",
            guard_bytes_per_s=bytes_per_s,
        )
        self.core = WorkerCore(options, Scheduler(ENGINE))
        self.runner = SimulatedRunner(vocabulary_size=1000, eos_token_ids=frozenset())
        self.step: RunStep | None = None
        self.copies: list[CopyBlocks] = []
        self.now_ns = 0
        self.handle(WorkerStarted(cause_id="start"))

    def handle(self, event: WorkerEvent) -> None:
        for command in self.core.handle(event, now_ns=self.now_ns):
            if isinstance(command, RunStep):
                self.step = command
            elif isinstance(command, CopyBlocks):
                self.copies.append(command)
        self.core.check_invariants()

    def hear(self, worker_id: str = "worker-c", **changes: Any) -> None:
        self.handle(PeerReported(report=a_report(worker_id, **changes), cause_id=worker_id))

    def start(self, name: str = "r", **changes: Any) -> None:
        message: StartSession = build_start(name, **{"max_tokens": 60, **changes})
        self.handle(StartReceived(message=message, cause_id=name))

    def steps(self, count: int, *, every_ns: int = 20 * NS_PER_MS) -> None:
        for _ in range(count):
            self.now_ns += every_ns
            step = self.step
            assert step is not None
            self.handle(
                StepFinished(
                    op_id=step.op_id,
                    result=self.runner.run(step.plan),
                    duration_ns=every_ns,
                    cause_id="step",
                )
            )

    def copied(self) -> None:
        """Let the copy under way end well."""
        copy = self.copies[-1]
        moved = len(copy.blocks) * BLOCK_BYTES
        self.handle(
            BlocksCopied(
                op_id=copy.op_id,
                hashes_held=tuple(block_hash for block_hash, _ in copy.blocks),
                blocks_moved=len(copy.blocks),
                bytes_planned=moved,
                bytes_moved=moved,
                bytes_copied_here=0,
                link_rates=(),
                duration_ns=1,
                cause_id="copy",
            )
        )

    def failed(self) -> None:
        """Let the copy under way fail."""
        self.handle(
            PositionWorkFailed(
                op_id=self.copies[-1].op_id,
                reason=ShapeFailReason.PEER_LOST,
                message="gone",
                cause_id="copy",
            )
        )


def a_report(worker_id: str, **changes: Any) -> WorkerReport:
    position = ReportedPosition(
        replica_id=f"replica-of-{worker_id}",
        replica_epoch=3,
        stages=1,
        shards=1,
        stage=0,
        shard=0,
    )
    return WorkerReport(
        **{
            "worker_id": worker_id,
            "beat": 0,
            "alias": "tide",
            "process_id": 1,
            "context_tokens_max": 128,
            "vocabulary_size": 1000,
            "block_tokens": 4,
            "blocks_total": 64,
            "blocks_free": 64,
            "sessions_running": 0,
            "sessions_waiting": 0,
            "tokens_waiting": 0,
            "tokens_generated": 0,
            "steps": 0,
            "step_ms_recent": 0.0,
            "node_id": f"node-of-{worker_id}",
            "position": position,
            "peer_address": f"tcp://{worker_id}",
            **changes,
        }
    )


def a_position(stage: int, shard: int, *, stages: int, shards: int, **changes: Any) -> Any:
    return ReportedPosition(
        **{
            "replica_id": "wide",
            "replica_epoch": 3,
            "stages": stages,
            "shards": shards,
            "stage": stage,
            "shard": shard,
            **changes,
        }
    )


def test_full_blocks_of_running_sessions_go_to_a_worker_on_another_node() -> None:
    worker = Guarded()
    worker.hear("worker-c")
    worker.start(prompt_token_ids=tuple(range(1, 14)))
    worker.steps(3)
    (copy,) = worker.copies
    assert len(copy.blocks) == 3
    assert copy.target.replica_id == "replica-of-worker-c"
    assert copy.target.workers[0].peer_address == "tcp://worker-c"


def test_what_the_guard_has_is_not_offered_again() -> None:
    worker = Guarded()
    worker.hear()
    worker.start(prompt_token_ids=tuple(range(1, 14)))
    worker.steps(3)
    worker.copied()
    first = {block_hash for block_hash, _ in worker.copies[0].blocks}
    worker.steps(12)
    assert len(worker.copies) == 2
    assert not first & {block_hash for block_hash, _ in worker.copies[1].blocks}


@pytest.mark.parametrize(
    "unfit",
    [
        {"node_id": "node-b"},
        {"node_id": None},
        {"alias": "other"},
        {"is_draining": True},
        {"is_serving": False},
        {"grace_left_ms": 20_000},
        {"block_tokens": 16},
        {"position": None},
    ],
    ids=str,
)
def test_nobody_guards_who_would_die_too_or_could_not_use_it(unfit: dict[str, Any]) -> None:
    worker = Guarded()
    worker.hear("worker-c", **unfit)
    worker.start()
    worker.steps(20)
    assert worker.copies == []


def test_each_worker_guards_the_one_before_it_in_a_ring() -> None:
    worker = Guarded()
    for peer in ("worker-a", "worker-d", "worker-c"):
        worker.hear(peer)
    worker.start(prompt_token_ids=tuple(range(1, 14)))
    worker.steps(3)
    assert worker.copies[0].target.replica_id == "replica-of-worker-c"


@pytest.mark.parametrize(("stages", "shards"), [(2, 1), (1, 2), (2, 2)])
def test_a_replica_of_any_shape_guards_once_all_of_it_was_heard(stages: int, shards: int) -> None:
    worker = Guarded()
    worker.start(prompt_token_ids=tuple(range(1, 14)))
    names = []
    for stage in range(stages):
        for shard in range(shards):
            assert worker.copies == []
            names.append(f"worker-{stage}-{shard}")
            worker.hear(
                names[-1],
                position=a_position(stage, shard, stages=stages, shards=shards),
                is_serving=(stage, shard) == (stages - 1, 0),
            )
            worker.steps(3)
    target = worker.copies[0].target
    assert (target.stages, target.shards) == (stages, shards)
    assert [placed.worker_id for placed in target.workers] == names


@pytest.mark.parametrize(
    "unfit",
    [
        {"node_id": "node-b"},
        {"is_draining": True},
        {"grace_left_ms": 20_000},
        {"position": a_position(0, 0, stages=2, shards=1, is_broken=True)},
        {"position": a_position(0, 0, stages=2, shards=1, replica_epoch=2)},
    ],
    ids=str,
)
def test_a_replica_guards_nobody_if_one_of_its_workers_is_unfit(unfit: dict[str, Any]) -> None:
    worker = Guarded()
    member = {"position": a_position(0, 0, stages=2, shards=1), "is_serving": False}
    worker.hear("worker-c", **{**member, **unfit})
    worker.hear("worker-d", position=a_position(1, 0, stages=2, shards=1))
    worker.start()
    worker.steps(20)
    assert worker.copies == []


def test_a_guard_that_fell_silent_is_replaced_and_the_new_one_gets_everything() -> None:
    worker = Guarded()
    worker.hear("worker-c")
    worker.start(prompt_token_ids=tuple(range(1, 14)))
    worker.steps(3)
    worker.failed()
    worker.now_ns += 3 * NS_PER_S
    worker.hear("worker-d")
    worker.steps(2)
    assert [copy.target.replica_id for copy in worker.copies] == [
        "replica-of-worker-c",
        "replica-of-worker-d",
    ]
    assert len(worker.copies[1].blocks) >= 3


def test_the_link_is_used_no_more_than_is_allowed() -> None:
    worker = Guarded(bytes_per_s=2 * BLOCK_BYTES)
    worker.hear()
    worker.start(prompt_token_ids=tuple(range(1, 14)))
    worker.steps(3)
    worker.copied()
    # Three blocks of it take one and a half seconds of the budget.
    worker.steps(50, every_ns=25 * NS_PER_MS)
    assert len(worker.copies) == 1
    worker.hear()
    worker.steps(2, every_ns=300 * NS_PER_MS)
    assert len(worker.copies) == 2


def test_without_a_budget_nothing_is_copied() -> None:
    worker = Guarded(bytes_per_s=0)
    worker.hear()
    worker.start()
    worker.steps(20)
    assert worker.copies == []


def test_blocks_are_free_again_when_the_copy_has_ended() -> None:
    worker = Guarded()
    worker.hear()
    worker.start(prompt_token_ids=tuple(range(1, 14)), max_tokens=4)
    worker.steps(4)
    scheduler = worker.core.position_of("solo").scheduler  # type: ignore[union-attr]
    assert scheduler is not None
    assert scheduler.is_copying
    worker.copied()
    assert not scheduler.is_copying
    assert scheduler.load().blocks_free == ENGINE.blocks_total

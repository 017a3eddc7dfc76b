"""What a worker core asks of the world.

RunStep ends in StepFinished or StepFailed, AllocatePosition in PositionAllocated, LoadPosition in
PositionLoaded, FormGroup in GroupFormed, CopyBlocks in BlocksCopied, FreePosition in PositionFreed;
each of these but the first may end in PositionWorkFailed instead. StoreBlocks ends in BlocksStored,
LoadBlocks in BlocksLoaded, either in HostCopyFailed instead.

Everything sent may be lost: tokens are sent again until acknowledged, answers are asked for again,
and a report is replaced by the next.
"""

from dataclasses import dataclass
from typing import Final

from libs.contracts.handover import LoadWeights, ReplicaRoster, ToMigrator
from libs.contracts.reports import WorkerReport
from libs.contracts.sessions import ToRouter
from libs.contracts.token_step import TokenStep
from libs.engine.steps import StepPlan
from libs.kernel.core import Caused, Operation, SetTimer

EXIT_DRAINED: Final = 0
EXIT_ENGINE_FAILED: Final = 71
"""The engine raised in the middle of a step; a fresh process is the only sure state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep(Operation):
    """Run one engine step of this replica, on the engine's own thread.

    The lead of a replica of several workers sends the plan to all members first. A lead has at most
    one step under way; a member runs what its lead sends, in order.
    """

    replica_id: str
    plan: StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class YieldStep(Caused):
    """Ask the step that is under way to be given up, because an online session would be late.

    Has no outcome of its own: StepFinished says whether it was, and may have come already.
    """

    replica_id: str
    step_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatePosition(Operation):
    """Make room for a position: its part of the model and its KV, both still empty.

    The lead also opens the rendezvous of the replica's group.
    """

    replica: ReplicaRoster
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPosition(Operation):
    """Fetch the weights that the position lacks, and build its part of the model from them."""

    message: LoadWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class FormGroup(Operation):
    """Meet the other workers of the replica, with KV of exactly so many blocks on each."""

    replica_id: str
    rendezvous: str
    kv_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyBlocks(Operation):
    """Send these blocks of all ranks of the source to all ranks of the target, in this order."""

    source: ReplicaRoster
    target: ReplicaRoster
    blocks: tuple[tuple[int, int], ...]
    """(hash, block of the source); pinned until the outcome."""
    copy_until_unix_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreBlocks(Operation):
    """Copy blocks of every rank of this replica to host memory, beside its steps."""

    replica_id: str
    pairs: tuple[tuple[int, int], ...]
    """(block, slot); the blocks are pinned until the outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBlocks(Operation):
    """Copy blocks of every rank of this replica back from host memory, beside its steps."""

    replica_id: str
    pairs: tuple[tuple[int, int], ...]
    """(slot, block); the blocks are reserved until the outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakGroup(Caused):
    """Abort the group: a peer is lost, and whoever waits for it shall know. Has no outcome."""

    replica_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FreePosition(Operation):
    """Free what this position alone uses, once no step of it is under way."""

    replica_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMigrator(Caused):
    """Publish to `migrator_control(migrator_id)`."""

    migrator_id: str
    message: ToMigrator


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPeer(Operation):
    """Tell the peer that asked which blocks are wanted and where they go; () is none."""

    blocks: tuple[tuple[int, int], ...]
    """(hash, block of the target)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTokens(Caused):
    """Publish to `router_tokens(router_id)`."""

    router_id: str
    step: TokenStep


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToRouter(Caused):
    """Publish to `router_control(router_id)`."""

    router_id: str
    message: ToRouter


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport(Caused):
    """Publish to `worker_report(worker_id)`."""

    report: WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class StopProcess(Caused):
    """Send what was commanded before, then end the process. The core ignores what comes after."""

    exit_code: int
    message: str


PositionCommand = AllocatePosition | LoadPosition | FormGroup | CopyBlocks | FreePosition
"""What takes a while and may fail; each ends in one event."""

HostCommand = StoreBlocks | LoadBlocks
"""Copies between a replica's KV and its host memory; each ends in one event."""

WorkerCommand = (
    RunStep
    | HostCommand
    | YieldStep
    | PositionCommand
    | BreakGroup
    | AnswerMigrator
    | AnswerPeer
    | SendTokens
    | SendToRouter
    | PublishReport
    | SetTimer
    | StopProcess
)

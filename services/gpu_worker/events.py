"""What happens to a worker. Each event carries `cause_id`: the request, step or signal behind."""

from dataclasses import dataclass

from libs.contracts.handover import ShapeFailReason, ToShape
from libs.contracts.preemption import NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import LinkRate, WorkerReport
from libs.contracts.sessions import AcknowledgeTokens, EndSession, StartSession
from libs.engine.steps import StepPlan, StepResult
from libs.kernel.core import TimerFired
from services.gpu_worker.checkpoint_options import NO_ROOM, HostRoom


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted:
    """The model is loaded and warm; the worker may announce itself. Comes once, first."""

    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReceived:
    """A router asks to run a session."""

    message: StartSession
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgeReceived:
    """A router says what it has journaled."""

    message: AcknowledgeTokens
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndReceived:
    """A router asks to forget a session."""

    message: EndSession
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """The engine has run the step of RunStep with this op_id."""

    op_id: str
    result: StepResult | None
    """None on a member, which does not sample."""
    duration_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:
    """The engine raised during the step of RunStep with this op_id; its KV is not to be trusted.

    In a replica of several workers it may be a peer that is lost.
    """

    op_id: str
    replica_id: str
    reason: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested:
    """The process was told to end. A second one cuts the wait for running sessions short."""

    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeReceived:
    """Something was said about the end of this node, by its watcher or over the bus."""

    message: PreemptionNotice | NoticeWithdrawn
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeReceived:
    """The migrator asks for a step of a hand-over."""

    message: ToShape
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReported:
    """A worker said how it is; one's own reports come back, too."""

    report: WorkerReport
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionAllocated:
    """There is room for the position, with KV of `kv_blocks` blocks."""

    op_id: str
    kv_blocks: int
    rendezvous: str
    """Where the members meet; empty from one that is not the lead."""
    cause_id: str
    host_room: HostRoom = NO_ROOM
    """For checkpoints of its KV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionLoaded:
    """The position has its weights, `weights_bytes` of this worker in all."""

    op_id: str
    weights_bytes: int
    bytes_planned: int
    bytes_from_peers: int
    bytes_from_disk: int
    bytes_kept: int
    link_rates: tuple[LinkRate, ...]
    duration_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFormed:
    """All workers of the replica have met."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksCopied:
    """The blocks are at the target, or as many as could be sent in time or found room."""

    op_id: str
    hashes_held: tuple[int, ...]
    """Of those offered: what the target has now, whoever brought it."""
    blocks_moved: int
    bytes_planned: int
    bytes_moved: int
    bytes_copied_here: int
    link_rates: tuple[LinkRate, ...]
    duration_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionFreed:
    """The position's memory is free; `weights_bytes` are still held for the other one."""

    op_id: str
    weights_bytes: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionWorkFailed:
    """A PositionCommand failed and left things as they were before."""

    op_id: str
    reason: ShapeFailReason
    message: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReceived:
    """The lead of a replica says what all its workers compute next."""

    replica_id: str
    replica_epoch: int
    plan: StepPlan
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLost:
    """The link to a worker of this replica broke."""

    replica_id: str
    replica_epoch: int
    worker_id: str
    reason: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvOffered:
    """The lead of a source offers blocks; answered by AnswerPeer with this op_id."""

    op_id: str
    replica_id: str
    replica_epoch: int
    ticket_id: str
    hashes: tuple[int, ...]
    """In the order of the chain: what fits is taken from the front."""
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCommitted:
    """These blocks of an offer have arrived at every rank of this replica, verified."""

    replica_id: str
    replica_epoch: int
    ticket_id: str
    hashes: tuple[int, ...]
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvDropped:
    """Nothing more of this offer will be written here; what is not committed is garbage."""

    replica_id: str
    replica_epoch: int
    ticket_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksStored:
    """The blocks of a StoreBlocks lie in host memory, on every rank."""

    op_id: str
    duration_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksLoaded:
    """The blocks of a LoadBlocks lie on the device, on every rank, but for those that some rank
    found changed in host memory."""

    op_id: str
    slots_corrupt: tuple[int, ...]
    duration_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCopyFailed:
    """A HostCommand failed, and nothing of it goes on; what it wrote is worthless."""

    op_id: str
    message: str
    cause_id: str


HostEvent = BlocksStored | BlocksLoaded | HostCopyFailed
"""The outcomes of a HostCommand."""

PositionEvent = (
    PositionAllocated
    | PositionLoaded
    | GroupFormed
    | BlocksCopied
    | PositionFreed
    | PositionWorkFailed
)
"""The outcomes of a PositionCommand."""

PeerEvent = PlanReceived | PeerLost | KvOffered | KvCommitted | KvDropped
"""What other workers say."""

WorkerEvent = (
    WorkerStarted
    | StartReceived
    | AcknowledgeReceived
    | EndReceived
    | StepFinished
    | StepFailed
    | TimerFired
    | DrainRequested
    | NoticeReceived
    | ShapeReceived
    | PeerReported
    | PositionEvent
    | HostEvent
    | PeerEvent
)

"""What happens to a worker. Each event carries `cause_id`: the request, step or signal behind."""

from dataclasses import dataclass

from libs.contracts.handover import ShapeFailReason, ToShape
from libs.contracts.preemption import NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import LinkRate, WorkerReport
from libs.contracts.sessions import AcknowledgeTokens, EndSession, StartSession
from libs.engine.steps import StepPlan, StepResult
from libs.kernel.core import Caused, Operation, TimerFired
from services.gpu_worker.checkpoint_options import NO_ROOM, HostRoom


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Caused):
    """The model is loaded and warm; the worker may announce itself. Comes once, first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReceived(Caused):
    """A router asks to run a session."""

    message: StartSession


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgeReceived(Caused):
    """A router says what it has journaled."""

    message: AcknowledgeTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EndReceived(Caused):
    """A router asks to forget a session."""

    message: EndSession


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished(Operation):
    """The engine has run the step of RunStep with this op_id."""

    result: StepResult | None
    """None on a member, which does not sample."""
    duration_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed(Operation):
    """The engine raised during the step of RunStep with this op_id; its KV is not to be trusted.

    In a replica of several workers it may be a peer that is lost.
    """

    replica_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested(Caused):
    """The process was told to end. A second one cuts the wait for running sessions short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeReceived(Caused):
    """Something was said about the end of this node, by its watcher or over the bus."""

    message: PreemptionNotice | NoticeWithdrawn


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeReceived(Caused):
    """The migrator asks for a step of a hand-over."""

    message: ToShape


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReported(Caused):
    """A worker said how it is; one's own reports come back, too."""

    report: WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionAllocated(Operation):
    """There is room for the position, with KV of `kv_blocks` blocks."""

    kv_blocks: int
    rendezvous: str
    """Where the members meet; empty from one that is not the lead."""
    host_room: HostRoom = NO_ROOM
    """For checkpoints of its KV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionLoaded(Operation):
    """The position has its weights, `weights_bytes` of this worker in all."""

    weights_bytes: int
    bytes_planned: int
    bytes_from_peers: int
    bytes_from_disk: int
    bytes_kept: int
    link_rates: tuple[LinkRate, ...]
    duration_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFormed(Operation):
    """All workers of the replica have met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksCopied(Operation):
    """The blocks are at the target, or as many as could be sent in time or found room."""

    hashes_held: tuple[int, ...]
    """Of those offered: what the target has now, whoever brought it."""
    blocks_moved: int
    bytes_planned: int
    bytes_moved: int
    bytes_copied_here: int
    link_rates: tuple[LinkRate, ...]
    duration_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionFreed(Operation):
    """The position's memory is free; `weights_bytes` are still held for the other one."""

    weights_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionWorkFailed(Operation):
    """A PositionCommand failed and left things as they were before."""

    reason: ShapeFailReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReceived(Caused):
    """The lead of a replica says what all its workers compute next."""

    replica_id: str
    replica_epoch: int
    plan: StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLost(Caused):
    """The link to a worker of this replica broke."""

    replica_id: str
    replica_epoch: int
    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvOffered(Operation):
    """The lead of a source offers blocks; answered by AnswerPeer with this op_id."""

    replica_id: str
    replica_epoch: int
    ticket_id: str
    hashes: tuple[int, ...]
    """In the order of the chain: what fits is taken from the front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCommitted(Caused):
    """These blocks of an offer have arrived at every rank of this replica, verified."""

    replica_id: str
    replica_epoch: int
    ticket_id: str
    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvDropped(Caused):
    """Nothing more of this offer will be written here; what is not committed is garbage."""

    replica_id: str
    replica_epoch: int
    ticket_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksStored(Operation):
    """The blocks of a StoreBlocks lie in host memory, on every rank."""

    duration_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksLoaded(Operation):
    """The blocks of a LoadBlocks lie on the device, on every rank, but for those that some rank
    found changed in host memory."""

    slots_corrupt: tuple[int, ...]
    duration_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCopyFailed(Operation):
    """A HostCommand failed, and nothing of it goes on; what it wrote is worthless."""

    message: str


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

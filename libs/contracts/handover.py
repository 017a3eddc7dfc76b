"""What the migrator and the workers say to each other while the fleet changes its shape.

A worker holds at most two positions: the one it serves and the one it stages beside it. The
migrator sends commands to `worker_shape(worker_id)` and repeats them until they are answered on
`migrator_control(migrator_id)`; each is answered by exactly one ShapeDone or ShapeFailed with its
`op_id`, and a repeated one is answered again without being done twice. A command of an older
`handover_epoch` than the worker has seen is refused as stale: its migrator was replaced.

    StagePosition   make room for a position and its KV beside the one that serves
    LoadWeights     fetch exactly the slices that are missing, from peers or from disk
    FormReplica     form the process group of the staged replica beside the running one
    CopyKv          (to a source's lead) send full KV blocks of running sessions, while decoding
    StopReplica     (to a source's lead) stop at the next step boundary, send what is left
    ActivateReplica (to the target's lead, and to members) the staged position now serves
    ReleaseSessions (to a source's lead) tell the routers where each session goes on
    DropReplica     free a position that no longer serves, or a staged one that is not wanted
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from libs.contracts.placement import SHARDS_MAX, STAGES_MAX, WORKERS_MAX
from libs.contracts.wire import Codec, Message, SubjectToken


class PlacedWorker(Message):
    """A worker at a position, and where its peers reach it."""

    worker_id: SubjectToken
    peer_address: str = Field(max_length=256)
    stage: int = Field(ge=0, lt=STAGES_MAX)
    shard: int = Field(ge=0, lt=SHARDS_MAX)
    is_leaving: bool = False


class ReplicaRoster(Message):
    """A replica with everything that is needed to reach its workers."""

    replica_id: SubjectToken
    replica_epoch: int = Field(ge=1)
    stages: int = Field(ge=1, le=STAGES_MAX)
    shards: int = Field(ge=1, le=SHARDS_MAX)
    workers: tuple[PlacedWorker, ...] = Field(
        max_length=WORKERS_MAX, description="in the order of ranks; the dead are left out"
    )

    @property
    def is_whole(self) -> bool:
        """Whether every position has a worker."""
        return len(self.workers) == self.stages * self.shards

    @property
    def lead(self) -> PlacedWorker | None:
        """The worker that routers speak to, unless it is dead."""
        for worker in self.workers:
            if worker.stage == self.stages - 1 and worker.shard == 0:
                return worker
        return None


def worker_ids_of(replicas: Iterable[ReplicaRoster]) -> frozenset[str]:
    """Return the workers of these replicas."""
    return frozenset(worker.worker_id for replica in replicas for worker in replica.workers)


class WeightsFrom(StrEnum):
    """Where a staged position takes its weights from."""

    PEERS = "peers"
    """From whoever holds them now; from disk only what no live peer holds."""
    DISK = "disk"
    """From the checkpoint alone, its own slices included: a restart, as the baselines do it."""


class ShapeCommand(Message):
    """What every command of a hand-over carries; not sent by itself."""

    handover_id: SubjectToken
    handover_epoch: int = Field(ge=1, description="grows with every owner of the hand-over")
    migrator_id: SubjectToken
    op_id: SubjectToken
    plan_revision: int = Field(ge=1)


class StagePosition(ShapeCommand):
    """Make room for this position and its KV; at most one is staged at a time.

    Done: `rendezvous` from the lead of the staged replica, `kv_blocks` that fit its memory.
    A position staged before for another replica is dropped first.
    """

    type: Literal["stage_position.v1"] = "stage_position.v1"
    replica: ReplicaRoster
    batch_sequences_max: int = Field(default=64, ge=1)


class LoadWeights(ShapeCommand):
    """Bring the staged position's weights here: all targets at once choose the same routes.

    `holders` are the replicas that hold weights now, `targets` all that are being staged in this
    hand-over; each worker computes the same routes from them and takes its own part. Done:
    `bytes_planned`, `bytes_from_peers`, `bytes_from_disk`, `bytes_kept`.
    """

    type: Literal["load_weights.v1"] = "load_weights.v1"
    replica_id: SubjectToken
    weights_from: WeightsFrom = WeightsFrom.PEERS
    holders: tuple[ReplicaRoster, ...] = ()
    targets: tuple[ReplicaRoster, ...] = ()
    layer_order: tuple[int, ...] = Field(
        default=(), max_length=4096, description="empty: ascending; layers outside are ignored"
    )
    buffer_bytes_max: int = Field(default=64 * 1024 * 1024, ge=1024 * 1024)


class FormReplica(ShapeCommand):
    """Form the process group of the staged replica; every member is told at the same time.

    Done when the whole group has met; `kv_blocks` is then the same for all.
    """

    type: Literal["form_replica.v1"] = "form_replica.v1"
    replica_id: SubjectToken
    rendezvous: str = Field(max_length=256, description="as the lead's StagePosition answered")
    kv_blocks: int = Field(
        ge=1, description="of each rank: the least that any of them has room for"
    )


class MovingTerms(Message):
    """By what each session of a source is copied, replayed, or left to finish where it is."""

    kv_bytes_per_token: int = Field(ge=0, description="of those that one link carries")
    link_bytes_per_s: int = Field(ge=1, description="measured; assumed where nobody has")
    prefill_tokens_per_s: int = Field(ge=1, description="of the heirs")
    finish_within_ms: int = Field(default=0, ge=0, description="who ends by then is not moved")
    copy_within_ms: int | None = Field(
        default=None, ge=0, description="until the source's node ends; none: it stays"
    )


class CopyKv(ShapeCommand):
    """Send the full KV blocks of this replica's sessions to those that inherit them.

    To the lead of the source, which goes on decoding and assigns each session to one target. Each
    block goes once to every target slice, however often this is asked. Done: `bytes_planned`,
    `bytes_moved`, `blocks_moved`, `blocks_left` (filled meanwhile), `sessions_finishing`.
    """

    type: Literal["copy_kv.v1"] = "copy_kv.v1"
    source: ReplicaRoster
    targets: tuple[ReplicaRoster, ...]
    terms: MovingTerms | None = Field(default=None, description="none: every session is copied")


class StopReplica(ShapeCommand):
    """Stop at the next step boundary and send what is left; new sessions wait or are refused.

    To the lead of the source. With no targets nothing is copied: what was computed is computed
    again. Done as CopyKv, with `sessions` held and `tokens_uncopied`.
    """

    type: Literal["stop_replica.v1"] = "stop_replica.v1"
    source: ReplicaRoster
    targets: tuple[ReplicaRoster, ...] = ()
    copy_until_unix_ns: int | None = Field(
        default=None, description="what is not copied by then is left behind"
    )
    terms: MovingTerms | None = Field(default=None, description="none: every session is copied")


class ResumeReplica(ShapeCommand):
    """Go on stepping after a StopReplica that led to nothing: the hand-over was abandoned."""

    type: Literal["resume_replica.v1"] = "resume_replica.v1"
    replica_id: SubjectToken


class ActivateReplica(ShapeCommand):
    """The staged position of this replica serves from now on; to all its workers.

    What the worker served before must have been stopped; it stays in memory until DropReplica.
    """

    type: Literal["activate_replica.v1"] = "activate_replica.v1"
    replica_id: SubjectToken


class ReleaseSessions(ShapeCommand):
    """Tell the routers that each session goes on at the lead it was copied to.

    To the lead of the source, after the targets serve. Sessions without a copy are spread over
    the targets; without targets the routers choose. Done: `sessions` released.
    """

    type: Literal["release_sessions.v1"] = "release_sessions.v1"
    replica_id: SubjectToken
    target_worker_ids: tuple[SubjectToken, ...] = ()


class DropReplica(ShapeCommand):
    """Free everything of this replica that no other position of the worker uses."""

    type: Literal["drop_replica.v1"] = "drop_replica.v1"
    replica_id: SubjectToken


class ShapeDone(Message):
    """A command was carried out.

    Sent by a worker to `migrator_control(migrator_id)`. Lost: the command is repeated and
    answered again. Doubled: ignored. Fields that a command does not speak of are 0.
    """

    type: Literal["shape_done.v1"] = "shape_done.v1"
    worker_id: SubjectToken
    handover_id: SubjectToken
    op_id: SubjectToken
    rendezvous: str = ""
    kv_blocks: int = Field(default=0, ge=0)
    bytes_planned: int = Field(default=0, ge=0)
    bytes_moved: int = Field(default=0, ge=0, description="over the network, KV or weights")
    bytes_from_peers: int = Field(default=0, ge=0)
    bytes_from_disk: int = Field(default=0, ge=0)
    bytes_kept: int = Field(default=0, ge=0, description="weights that were here already")
    bytes_copied_here: int = Field(default=0, ge=0, description="KV, from one layout to another")
    blocks_moved: int = Field(default=0, ge=0)
    blocks_left: int = Field(default=0, ge=0)
    sessions: int = Field(default=0, ge=0)
    sessions_finishing: int = Field(
        default=0, ge=0, description="not copied: they end before the source has to stop"
    )
    tokens_uncopied: int = Field(default=0, ge=0, description="will be computed again")
    duration_ns: int = Field(default=0, ge=0)


class ShapeFailReason(StrEnum):
    """Why a worker did not carry out a command."""

    STALE = "stale"
    UNKNOWN_REPLICA = "unknown_replica"
    NO_MEMORY = "no_memory"
    UNSUPPORTED_SHAPE = "unsupported_shape"
    PEER_LOST = "peer_lost"
    WRONG_STATE = "wrong_state"
    TIMED_OUT = "timed_out"
    BROKEN = "broken"


class ShapeFailed(Message):
    """A command was not carried out; the worker is as it was before.

    Sent by a worker to `migrator_control(migrator_id)`, as ShapeDone.
    """

    type: Literal["shape_failed.v1"] = "shape_failed.v1"
    worker_id: SubjectToken
    handover_id: SubjectToken
    op_id: SubjectToken
    reason: ShapeFailReason
    message: str = Field(default="", max_length=2048)


ToShape = (
    StagePosition
    | LoadWeights
    | FormReplica
    | CopyKv
    | StopReplica
    | ResumeReplica
    | ActivateReplica
    | ReleaseSessions
    | DropReplica
)
ToMigrator = ShapeDone | ShapeFailed

WORKER_SHAPE: Codec[ToShape] = Codec(Annotated[ToShape, Field(discriminator="type")])
MIGRATOR_CONTROL: Codec[ToMigrator] = Codec(Annotated[ToMigrator, Field(discriminator="type")])

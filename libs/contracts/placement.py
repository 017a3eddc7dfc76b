"""The committed shape of the fleet: which worker computes which part of which replica.

The planner commits a Placement by compare-and-set and commands nobody; the migrator makes the
fleet follow it. `plan_revision` and `replica_epoch` only grow, and whoever has seen a later one
drops what is older.
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from libs.contracts.wire import Codec, Message, SubjectToken

WORKERS_MAX = 16_384
STAGES_MAX = 1024
SHARDS_MAX = 64


class Policy(StrEnum):
    """How the fleet follows the nodes that come and go."""

    SPOTSERVE = "spotserve"
    """The paper: just-in-time stop, KV first, then weights layer by layer."""
    REPARALLELIZE = "reparallelize"
    """Baseline: the same shapes, but every change restarts all replicas."""
    REROUTE = "reroute"
    """Baseline: one fixed (P, M); replicas are dropped and added whole."""
    TIDESERVE = "tideserve"
    """Weights staged and KV copied while the source decodes; only the last blocks at the stop."""


class ReplicaPlacement(Message):
    """One replica: P x M workers that compute together.

    A replica that does not change keeps its id and its epoch from one placement to the next.
    """

    replica_id: SubjectToken
    replica_epoch: int = Field(ge=1, description="the plan_revision that formed this group")
    stages: int = Field(ge=1, le=STAGES_MAX)
    shards: int = Field(ge=1, le=SHARDS_MAX)
    worker_ids: tuple[SubjectToken, ...] = Field(
        max_length=WORKERS_MAX, description="in the order of ranks: stage * shards + shard"
    )
    inherits: tuple[SubjectToken, ...] = Field(
        default=(), description="replicas of the placement before whose sessions come here"
    )

    @model_validator(mode="after")
    def _is_full(self) -> Self:
        if len(set(self.worker_ids)) != self.stages * self.shards:
            raise ValueError("worker_ids: one distinct worker for every position is needed")
        return self

    @property
    def lead_worker_id(self) -> str:
        """The worker that routers speak to: shard 0 of the last stage."""
        return self.worker_ids[(self.stages - 1) * self.shards]


class LeavingNode(Message):
    """A node that has been told to end."""

    node_id: SubjectToken
    worker_ids: tuple[SubjectToken, ...] = ()
    deadline_at_unix_ns: int | None = Field(
        default=None, description="on the planner's clock; None where the cloud does not say"
    )


class PinnedShape(Message):
    """The shape of every replica, where an operator chose it."""

    stages: int = Field(ge=1, le=STAGES_MAX)
    shards: int = Field(ge=1, le=SHARDS_MAX)


class Placement(Message):
    """What every worker of one model is to compute.

    Committed by the leading planner to the bucket of placements under `placement_key(alias)`, by
    compare-and-set; read by the migrator, planners on stand-by and whoever watches. A later
    revision replaces it whole; nothing refers to an older one.
    """

    type: Literal["placement.v1"] = "placement.v1"
    plan_revision: int = Field(ge=1)
    alias: SubjectToken
    policy: Policy
    replicas: tuple[ReplicaPlacement, ...] = ()
    spare_worker_ids: tuple[SubjectToken, ...] = Field(default=(), max_length=WORKERS_MAX)
    leaving: tuple[LeavingNode, ...] = ()
    batch_sequences_max: int = Field(default=64, ge=1, description="B, for each replica")
    pinned_shape: PinnedShape | None = Field(default=None, description="by PinShape")
    reason: str = Field(default="", max_length=1024, description="for people, one sentence")
    planned_at_unix_ns: int = Field(default=0, ge=0)
    planner_id: str = ""
    cause_id: str = ""

    @model_validator(mode="after")
    def _uses_each_worker_once(self) -> Self:
        placed = [worker_id for replica in self.replicas for worker_id in replica.worker_ids]
        if len(set(placed)) != len(placed):
            raise ValueError("replicas: a worker is placed twice")
        if len({replica.replica_id for replica in self.replicas}) != len(self.replicas):
            raise ValueError("replicas: an id is there twice")
        if set(placed) & set(self.spare_worker_ids):
            raise ValueError("spare_worker_ids: a placed worker is no spare")
        return self


class CapacityWanted(Message):
    """How many nodes the planner would like to have, and of which kind.

    Sent by the leading planner to `capacity_wanted(alias)` whenever it changes and periodically;
    handled by a provisioner. The whole each time: lost or doubled, it is harmless.
    """

    type: Literal["capacity_wanted.v1"] = "capacity_wanted.v1"
    alias: SubjectToken
    plan_revision: int = Field(ge=0)
    spot_nodes: int = Field(ge=0)
    on_demand_nodes: int = Field(ge=0)
    zones_preferred: tuple[SubjectToken, ...] = Field(default=(), max_length=64)
    nodes_to_release: tuple[SubjectToken, ...] = Field(default=(), max_length=WORKERS_MAX)
    reason: str = Field(default="", max_length=1024)


class PinShape(Message):
    """Use this shape of replica from now on, as long as it fits; without one, choose again.

    Sent by people, with a reply subject, to `planner_control(alias)`; the leading planner answers
    ShapePinned or PinRefused. Lost: no answer comes. Doubled: harmless. It is part of the committed
    placement, so that the next leader keeps it.
    """

    type: Literal["pin_shape.v1"] = "pin_shape.v1"
    shape: PinnedShape | None = Field(default=None, description="none: the planner chooses again")


class ShapePinned(Message):
    """The shape is pinned, or free again. Sent by the leading planner to the reply subject."""

    type: Literal["shape_pinned.v1"] = "shape_pinned.v1"
    plan_revision: int = Field(ge=0, description="of the placement that was current then")


class PinRefused(Message):
    """The model cannot be cut like that. Sent by the leading planner to the reply subject."""

    type: Literal["pin_refused.v1"] = "pin_refused.v1"
    message: str = Field(max_length=1024)


PlacementMessage = Placement | CapacityWanted
PinAnswer = ShapePinned | PinRefused
PLACEMENTS: Codec[PlacementMessage] = Codec(
    Annotated[PlacementMessage, Field(discriminator="type")]
)
PIN_REQUESTS: Codec[PinShape] = Codec(PinShape)
PIN_ANSWERS: Codec[PinAnswer] = Codec(Annotated[PinAnswer, Field(discriminator="type")])

"""The positions that a worker holds: the one it serves, and one that is staged or has been stopped.

    StagePosition -> staged --LoadWeights--> loaded --+
                       |                              +--ActivateReplica--> active <-> stopped
                       +-----FormReplica---> formed --+                       |           |
                                                            DropReplica: freed from any of them

Weights and process group come in either order. A position whose peer is lost is broken: it computes
nothing any more and stays, with its weights, until it is dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from libs.contracts.handover import ReplicaRoster
from libs.contracts.reports import ReportedPosition
from libs.engine.scheduler import Scheduler
from libs.kernel.core import require
from services.gpu_worker.checkpoint_options import NO_ROOM, HostRoom

POSITIONS_MAX: Final = 2
SOLO_REPLICA_ID: Final = "solo"
"""The replica of a worker that serves the whole model by itself and takes part in no plan."""


class PositionPhase(StrEnum):
    """Whether a position computes."""

    STAGED = "staged"
    ACTIVE = "active"
    STOPPING = "stopping"
    """No step is planned any more; one may still be in flight."""
    STOPPED = "stopped"


@dataclass(slots=True, kw_only=True, eq=False)
class OutgoingKv:
    """What a lead knows of the replicas that inherit its sessions."""

    hashes_held: dict[str, set[int]] = field(default_factory=dict)
    """By target replica: blocks known to be there; for membership only."""
    target_by_sequence: dict[str, str] = field(default_factory=dict)
    """Which target replica inherits each session, for as long as it is among the targets."""
    lead_by_target: dict[str, str] = field(default_factory=dict)
    """The worker that speaks for each target replica."""


@dataclass(slots=True, kw_only=True, eq=False)
class WorkerPosition:
    """One worker's part of one replica, from StagePosition to DropReplica."""

    roster: ReplicaRoster
    rank: int
    batch_sequences_max: int
    phase: PositionPhase = PositionPhase.STAGED
    is_allocated: bool = False
    is_loaded: bool = False
    is_formed: bool = False
    is_broken: bool = False
    rendezvous: str = ""
    kv_blocks: int = 0
    host_room: HostRoom = NO_ROOM
    """For checkpoints of its KV."""
    scheduler: Scheduler | None = None
    """Of the lead, from the allocation on: KV is copied into its pool before it serves."""
    tickets_ended: list[str] = field(default_factory=list)
    """Copies that came here before the position served; their blocks are kept until it does."""
    outgoing: OutgoingKv = field(default_factory=OutgoingKv)

    @property
    def replica_id(self) -> str:
        """The replica that this is a part of."""
        return self.roster.replica_id

    @property
    def is_lead(self) -> bool:
        """Whether this worker speaks for the replica: shard 0 of the last stage."""
        return self.rank == (self.roster.stages - 1) * self.roster.shards

    @property
    def is_alone(self) -> bool:
        """Whether the replica has no other worker."""
        return self.roster.stages * self.roster.shards == 1

    @property
    def is_ready(self) -> bool:
        """Whether it could compute."""
        return self.is_loaded and self.is_formed and not self.is_broken

    @property
    def is_serving(self) -> bool:
        """Whether routers may send it sessions."""
        return self.is_lead and self.phase is PositionPhase.ACTIVE and not self.is_broken

    @property
    def is_at_rest(self) -> bool:
        """Whether another position may take its place on the engine."""
        is_running = self.phase in (PositionPhase.ACTIVE, PositionPhase.STOPPING)
        return self.is_broken or not self.is_lead or not is_running

    def reported(self) -> ReportedPosition:
        """Return the position as reports carry it."""
        return ReportedPosition(
            replica_id=self.replica_id,
            replica_epoch=self.roster.replica_epoch,
            stages=self.roster.stages,
            shards=self.roster.shards,
            stage=self.rank // self.roster.shards,
            shard=self.rank % self.roster.shards,
            is_broken=self.is_broken,
        )


class Positions:
    """At most two positions, of which at most one is active."""

    def __init__(self) -> None:
        self._positions: dict[str, WorkerPosition] = {}
        self._serving_id: str | None = None

    def __iter__(self) -> Iterator[WorkerPosition]:
        """In the order in which they were staged."""
        return iter(list(self._positions.values()))

    @property
    def serving(self) -> WorkerPosition | None:
        """The position activated last, running or stopped."""
        return None if self._serving_id is None else self._positions.get(self._serving_id)

    def find(self, replica_id: str) -> WorkerPosition | None:
        """Return the position in this replica."""
        return self._positions.get(replica_id)

    def current(self, replica_id: str, replica_epoch: int) -> WorkerPosition | None:
        """Return the position in this replica, if it is of this very epoch."""
        position = self._positions.get(replica_id)
        if position is None or position.roster.replica_epoch != replica_epoch:
            return None
        return position

    def outdated(self) -> WorkerPosition | None:
        """Return the position that must go before another is staged; None if there is room.

        One that was staged and never served goes first, then one that serves no more.
        """
        for position in self:
            if position.phase is PositionPhase.STAGED:
                return position
        if len(self._positions) < POSITIONS_MAX:
            return None
        return next(position for position in self if position.replica_id != self._serving_id)

    def stage(self, position: WorkerPosition) -> None:
        """Hold another position."""
        require(len(self._positions) < POSITIONS_MAX, "a third position is staged")
        require(position.replica_id not in self._positions, f"{position.replica_id} is held twice")
        self._positions[position.replica_id] = position

    def can_activate(self, position: WorkerPosition) -> bool:
        """Whether this position serves already, or may take over from the one that does.

        One that was stopped does not come back this way: what it served goes on elsewhere.
        """
        if position.phase is PositionPhase.ACTIVE:
            return not position.is_broken
        before = self.serving
        is_free = before is None or before.is_at_rest
        return position.phase is PositionPhase.STAGED and position.is_ready and is_free

    def activate(self, position: WorkerPosition) -> None:
        """Let this position serve from now on."""
        require(self.can_activate(position), f"{position.replica_id} cannot be activated")
        before = self.serving
        if before is not None and before is not position:
            before.phase = PositionPhase.STOPPED
        position.phase = PositionPhase.ACTIVE
        self._serving_id = position.replica_id

    def drop(self, position: WorkerPosition) -> None:
        """Hold it no more."""
        del self._positions[position.replica_id]
        if self._serving_id == position.replica_id:
            self._serving_id = None

    def check_invariants(self) -> None:
        """Raise InvariantViolation if two positions serve, or one that could not compute does."""
        require(len(self._positions) <= POSITIONS_MAX, "too many positions are held")
        active = [p for p in self if p.phase is PositionPhase.ACTIVE]
        require(len(active) <= 1, "two positions are active")
        for position in active:
            name = position.replica_id
            require(position is self.serving, f"{name} is active and does not serve")
            require(position.is_ready or position.is_broken, f"{name} is active and not ready")
        for position in self:
            name = position.replica_id
            if position.scheduler is not None:
                require(position.is_lead, f"{name} is scheduled by a worker that is not its lead")
                position.scheduler.check_invariants()

"""What the owning migrator stores: the hand-overs under way, and the story of the latest.

One record per alias, in HANDOVER_BUCKET under `handover_key(alias)`, replaced whole by
compare-and-set. Who owns it is written in it, so that a migrator which was replaced can store
nothing any more. It is both what a successor goes on from and what people are shown.

A worker that moves takes about 280 bytes in it: of a fleet of 3,500 all may move at the same time
before a record exceeds the 1 MiB that a broker takes by default.
"""

from enum import StrEnum
from itertools import pairwise
from typing import Literal

from pydantic import Field

from libs.contracts.handover import ReplicaRoster, worker_ids_of
from libs.contracts.placement import Policy
from libs.contracts.wire import Codec, Message, SubjectToken

MOMENTS_MAX = 24
"""States that one hand-over can pass: every state once, and LOADING again after a hurried stop."""
STORIES_MAX = 32
"""Ended hand-overs that a record keeps; the oldest are forgotten first."""
UNDER_WAY_MAX = 4096
REPLICAS_MAX = 4096


class HandoverState(StrEnum):
    """What is being done; services/migrator/transitions.py says what may follow what."""

    STAGING = "staging"
    """Targets make room for their new position."""
    FORMING = "forming"
    """Targets form their process groups; their number of KV blocks is settled."""
    LOADING = "loading"
    """Targets fetch weights; under tideserve KV is copied meanwhile."""
    COPYING = "copying"
    """KV is copied until little is left, while the sources decode."""
    WAITING = "waiting"
    """The sources decode until it is time to stop."""
    STOPPING = "stopping"
    """The sources stop, and send what is left."""
    ACTIVATING = "activating"
    """The targets serve; entering this is the point of no return."""
    RELEASING = "releasing"
    """Routers are told where each session goes on."""
    DROPPING = "dropping"
    """The sources' memory is freed."""
    RESUMING = "resuming"
    """A replica that the placement wants stands still, and is started again."""
    ABANDONING = "abandoning"
    """Sources go on, staged targets are dropped."""
    DONE = "done"
    ABANDONED = "abandoned"


class HandoverMoment(Message):
    """A state was entered."""

    state: HandoverState
    entered_at_unix_ns: int = Field(ge=0)
    reason: str = Field(default="", max_length=256, description="for people; empty: as planned")


class HandoverTotals(Message):
    """What a hand-over cost, counted from the workers' answers."""

    weight_bytes_planned: int = Field(default=0, ge=0)
    weight_bytes_from_peers: int = Field(default=0, ge=0)
    weight_bytes_from_disk: int = Field(default=0, ge=0)
    weight_bytes_kept: int = Field(default=0, ge=0)
    kv_bytes_planned: int = Field(default=0, ge=0)
    kv_bytes_moved: int = Field(default=0, ge=0, description="over the network")
    kv_bytes_copied_here: int = Field(default=0, ge=0)
    kv_blocks_moved: int = Field(default=0, ge=0)
    sessions_released: int = Field(default=0, ge=0)
    tokens_uncopied: int = Field(default=0, ge=0, description="will be computed again")
    commands_failed: int = Field(default=0, ge=0)


class HandoverStory(Message):
    """Everything that happened in one hand-over, for `story` and for reports."""

    handover_id: SubjectToken
    policy: Policy = Field(
        description="whose route it follows; tideserve in a hurry goes on as spotserve"
    )
    plan_revision: int = Field(ge=1, description="the placement that asked for it")
    cause_id: str = ""
    source_replica_ids: tuple[SubjectToken, ...] = Field(default=(), max_length=REPLICAS_MAX)
    target_replica_ids: tuple[SubjectToken, ...] = Field(default=(), max_length=REPLICAS_MAX)
    moments: tuple[HandoverMoment, ...] = Field(min_length=1, max_length=MOMENTS_MAX)
    totals: HandoverTotals = HandoverTotals()

    @property
    def state(self) -> HandoverState:
        """The state entered last."""
        return self.moments[-1].state

    @property
    def stall_ns(self) -> int:
        """From the stop of the sources until their sessions are released and targets serve.

        0 where that is not over, or where nothing was stopped.
        """
        stopped_at = self._entered_at(HandoverState.STOPPING)
        released_at = self._left_at(HandoverState.RELEASING)
        if stopped_at is None or released_at is None:
            return 0
        serving_at = self._left_at(HandoverState.ACTIVATING) or released_at
        return max(0, released_at - stopped_at, serving_at - stopped_at)

    def _entered_at(self, state: HandoverState) -> int | None:
        return next((m.entered_at_unix_ns for m in self.moments if m.state is state), None)

    def _left_at(self, state: HandoverState) -> int | None:
        for moment, after in pairwise(self.moments):
            if moment.state is state:
                return after.entered_at_unix_ns
        return None


class HandoverSource(Message):
    """A replica that ends."""

    replica: ReplicaRoster
    is_lost: bool = Field(
        default=False, description="broken, or its lead is gone: its sessions have to be replayed"
    )


class HandoverTarget(Message):
    """A replica that begins, or one that serves already and takes sessions in."""

    replica: ReplicaRoster
    inherits: tuple[SubjectToken, ...] = Field(default=(), max_length=REPLICAS_MAX)
    is_in_place: bool = Field(default=False, description="serves already")
    is_lost: bool = Field(default=False, description="will not serve: a worker of it failed")
    batch_sequences_max: int = Field(default=64, ge=1)
    rendezvous: str = Field(default="", max_length=256)
    kv_blocks: int = Field(default=0, ge=0, description="of each rank; 0: not known yet")


class Handover(Message):
    """Replicas that have to change together, because they share workers or sessions."""

    story: HandoverStory
    sources: tuple[HandoverSource, ...] = Field(default=(), max_length=REPLICAS_MAX)
    targets: tuple[HandoverTarget, ...] = Field(default=(), max_length=REPLICAS_MAX)

    @property
    def handover_id(self) -> str:
        """Grows with each hand-over of an alias."""
        return self.story.handover_id

    @property
    def state(self) -> HandoverState:
        """The state entered last."""
        return self.story.state

    @property
    def worker_ids(self) -> frozenset[str]:
        """Everybody who takes part."""
        return self.changing_worker_ids | worker_ids_of(
            target.replica for target in self.targets if target.is_in_place
        )

    @property
    def changing_worker_ids(self) -> frozenset[str]:
        """Everybody but those who only take sessions in: to them nothing is done."""
        sources = (source.replica for source in self.sources)
        begun = (target.replica for target in self.targets if not target.is_in_place)
        return worker_ids_of((*sources, *begun))

    @property
    def is_futile(self) -> bool:
        """Whether a replica that was to begin is lost, or everyone who was to take sessions in."""
        lost = [target for target in self.targets if target.is_lost]
        is_beginner_lost = any(not target.is_in_place for target in lost)
        return is_beginner_lost or (bool(lost) and len(lost) == len(self.targets))


class HandoverRecord(Message):
    """The hand-overs of one alias.

    Stored by the owning migrator under `handover_key(alias)` by compare-and-set, before it acts on
    what is in it; read by its successor, and by whoever tells the story. Lost or late: the
    revision of the bucket shows it, and the writer reads before it writes again. Doubled: the
    second is refused by its revision.
    """

    type: Literal["handover_record.v1"] = "handover_record.v1"
    alias: SubjectToken
    migrator_id: SubjectToken = Field(description="the owner")
    handover_epoch: int = Field(ge=1, description="grows with every owner")
    plan_revision: int = Field(default=0, ge=0, description="of the placement pursued")
    plan_revision_reached: int = Field(default=0, ge=0, description="the fleet has had this shape")
    handovers_begun: int = Field(default=0, ge=0)
    handovers_done: int = Field(default=0, ge=0)
    handovers_abandoned: int = Field(default=0, ge=0)
    weight_bytes_moved: int = Field(default=0, ge=0, description="of all that have ended")
    kv_bytes_moved: int = Field(default=0, ge=0, description="of all that have ended")
    under_way: tuple[Handover, ...] = Field(default=(), max_length=UNDER_WAY_MAX)
    ended: tuple[HandoverStory, ...] = Field(
        default=(), max_length=STORIES_MAX, description="the oldest first"
    )


HANDOVER_RECORDS: Codec[HandoverRecord] = Codec(HandoverRecord)

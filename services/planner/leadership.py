"""Who plans: the planner whose name the committed placement carries.

    READING --none, or the leader is dead--> TAKING --committed--> LEADING --commit--> WRITING
       ^  \\--somebody else leads--> STANDBY                           ^                  |
       |                              | leader dead: TAKING            +----committed-----+
       +------- conflict, or the store did not answer: read again --------+

To take over is to write the placement anew under one's own name, by compare-and-set on the revision
that was read. That write is election and fence in one: of several candidates one succeeds, and
whatever the old leader still wants to commit expects a revision that is no more. A planner that was
frozen and wakes can therefore commit nothing; it reads, sees another name, and stands by.
"""

from dataclasses import dataclass
from enum import StrEnum

from libs.contracts.placement import Placement, Policy
from libs.kernel.core import require
from services.planner.commands import CommitPlacement, ReadPlacement
from services.planner.events import PlacementRead


class Role(StrEnum):
    """Where this planner stands."""

    READING = "reading"
    STANDBY = "standby"
    TAKING = "taking"
    LEADING = "leading"
    WRITING = "writing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The committed placement and its key's revision, as last read or written."""

    placement: Placement
    revision: int | None
    """None: it was never written; an empty placement stands for it."""


class Leadership:
    """The state above; returns the store commands that its steps need."""

    def __init__(self, *, planner_id: str, alias: str, policy: Policy) -> None:
        self._planner_id = planner_id
        self._nothing = Placement(
            plan_revision=1, alias=alias, policy=policy, reason="nothing is placed yet"
        )
        self._op_number = 0
        self._op_id: str | None = None
        self._writing: Placement | None = None
        self._plan_revision_seen = 0
        self.role = Role.READING
        self.stored: Stored | None = None
        self.times_fenced = 0

    @property
    def is_leading(self) -> bool:
        """Whether plans are ours to make; true also while one is being written."""
        return self.role in (Role.LEADING, Role.WRITING)

    @property
    def can_commit(self) -> bool:
        """Whether a plan may be written now."""
        return self.role is Role.LEADING

    @property
    def leader_id(self) -> str | None:
        """Who leads by the placement last read; None if nobody ever did."""
        return None if self.stored is None else self.stored.placement.planner_id or None

    @property
    def plan_revision_next(self) -> int:
        """Above every revision that was ever seen, even if the store has lost some."""
        return self._plan_revision_seen + 1

    def revision_seen(self, plan_revision: int) -> None:
        """Note a revision that somebody acts upon."""
        self._plan_revision_seen = max(self._plan_revision_seen, plan_revision)

    def read(self, *, cause_id: str) -> ReadPlacement:
        """Read the placement; whatever was under way is forgotten."""
        self.role = Role.READING
        return ReadPlacement(op_id=self._new_op(), cause_id=cause_id)

    def placement_read(self, event: PlacementRead) -> bool:
        """Take note of what is stored; return whether it was asked for."""
        if event.op_id != self._op_id or self.role is not Role.READING:
            return False
        self._op_id = None
        placement = event.placement or self._nothing
        self.stored = Stored(placement=placement, revision=event.revision)
        self.revision_seen(placement.plan_revision)
        was_writing, self._writing = self._writing is not None, None
        if placement.planner_id == self._planner_id:
            self.role = Role.LEADING  # a write of ours, even if nobody told us so
            return True
        self.times_fenced += was_writing
        self.role = Role.STANDBY
        return True

    def take_over(self, *, cause_id: str) -> CommitPlacement:
        """Write the placement that was read under our own name."""
        require(self.role is Role.STANDBY, f"a planner takes over while {self.role}")
        assert self.stored is not None
        placement = self.stored.placement.model_copy(update={"planner_id": self._planner_id})
        self.role = Role.TAKING
        return self._write(placement, cause_id=cause_id)

    def commit(self, placement: Placement, *, cause_id: str) -> CommitPlacement:
        """Write a new placement."""
        require(self.can_commit, f"a planner commits while {self.role}")
        require(placement.plan_revision > self._plan_revision_seen, "a plan revision does not grow")
        self.revision_seen(placement.plan_revision)
        self.role = Role.WRITING
        return self._write(placement, cause_id=cause_id)

    def committed(self, *, op_id: str, revision: int) -> Placement | None:
        """Take note of a write that succeeded; return it, or None if it is not the one awaited."""
        if op_id != self._op_id or self._writing is None:
            return None
        placement, self._writing, self._op_id = self._writing, None, None
        self.stored = Stored(placement=placement, revision=revision)
        self.revision_seen(placement.plan_revision)
        self.role = Role.LEADING
        return placement

    def outcome_unknown(self) -> None:
        """The store did not answer: what is true is read before anything else is written."""
        self.role = Role.READING
        self._op_id = None

    def is_awaited(self, op_id: str) -> bool:
        """Whether this outcome belongs to what is under way."""
        return op_id == self._op_id

    def check_invariants(self) -> None:
        """What must hold between any two events."""
        is_busy = self.role in (Role.READING, Role.TAKING, Role.WRITING)
        require(not self.is_leading or self.stored is not None, "a leader that has read nothing")
        require(self._writing is None or is_busy, f"a write is under way while {self.role}")
        if self.role is Role.LEADING:
            require(self.leader_id == self._planner_id, "a leader under another's name")

    def _write(self, placement: Placement, *, cause_id: str) -> CommitPlacement:
        assert self.stored is not None
        self._writing = placement
        return CommitPlacement(
            op_id=self._new_op(),
            placement=placement,
            revision=self.stored.revision,
            cause_id=cause_id,
        )

    def _new_op(self) -> str:
        self._op_number += 1
        self._op_id = f"store-{self._op_number:06}"
        return self._op_id

"""Who owns the record of an alias, and the writing of it by compare-and-set.

    unknown --read--> standby --the owner is silent, or there is none--> claiming --stored--> owner
       ^                 ^                                                  |                   |
       |                 +---------------- conflict: somebody else ---------+-------------------+
       +--- unavailable: read what stands there before anything else is written or said --------+

What an owner wants stored while a store is under way is stored next, all at once. A store whose
outcome is not known is settled by reading: a record under our id and epoch can only be ours.
"""

from enum import StrEnum

from libs.contracts.handover_record import HandoverRecord
from libs.kernel.core import require
from services.migrator.commands import Decision, ReadRecord, StoreRecord


class Role(StrEnum):
    """What this migrator is to the record."""

    UNKNOWN = "unknown"
    STANDBY = "standby"
    CLAIMING = "claiming"
    OWNER = "owner"


class Ownership:
    """The record as this migrator knows it, and what it may do with it."""

    def __init__(self, *, migrator_id: str, alias: str) -> None:
        self._migrator_id = migrator_id
        self._alias = alias
        self._operations = 0
        self._under_way: str | None = None
        self._storing: HandoverRecord | None = None
        self._wanted: HandoverRecord | None = None
        self._decisions: list[Decision] = []
        self._revision = 0
        self.role = Role.UNKNOWN
        self.is_doubted = False
        """An owner that has to read the record before it says anything more."""
        self.record: HandoverRecord | None = None
        """As it was last read or stored."""

    @property
    def is_busy(self) -> bool:
        """Whether a read or a store is under way."""
        return self._under_way is not None

    @property
    def may_speak(self) -> bool:
        """Whether orders may be given: the record is ours, as far as can be known."""
        return self.role is Role.OWNER and not self.is_doubted

    @property
    def latest(self) -> HandoverRecord:
        """Return the owner's own newest version, stored or not."""
        newest = self._wanted or self._storing or self.record
        assert newest is not None
        return newest

    def read(self, *, cause_id: str) -> ReadRecord:
        """Ask what stands there."""
        return ReadRecord(op_id=self._begin("read"), cause_id=cause_id)

    def claim(self, *, cause_id: str) -> StoreRecord:
        """Try to become the owner of what was read last."""
        before = self.record
        if before is None:
            record = HandoverRecord(
                alias=self._alias, migrator_id=self._migrator_id, handover_epoch=1
            )
        else:
            epoch = before.handover_epoch + 1
            changes = {"migrator_id": self._migrator_id, "handover_epoch": epoch}
            record = before.model_copy(update=changes)
        self.role = Role.CLAIMING
        self._wanted = None
        owner = "nobody" if before is None else before.migrator_id
        decision = Decision(name="record_claimed", reason=f"after {owner}", cause_id=cause_id)
        self._decisions.append(decision)
        return self._store(record, cause_id=cause_id)

    def want(self, record: HandoverRecord, *decisions: Decision) -> None:
        """Replace the record; it is stored as soon as nothing else is under way."""
        require(self.role is Role.OWNER, "who does not own the record changes it")
        self._wanted = record
        self._decisions.extend(decisions)

    def flush(self, *, cause_id: str) -> StoreRecord | None:
        """Store what is wanted, unless something is under way or in doubt."""
        if self._wanted is None or self.is_busy or not self.may_speak:
            return None
        wanted, self._wanted = self._wanted, None
        return self._store(wanted, cause_id=cause_id)

    def was_read(self, op_id: str, record: HandoverRecord | None, revision: int) -> bool:
        """Take what stands there; return whether the record is (still) ours."""
        if not self._end(op_id):
            return self.role is Role.OWNER
        self._revision = revision
        attempted = self._storing
        self._storing = None
        if record is not None and self._is_ours(record, attempted):
            if attempted is not None and record != attempted:
                # Ours, and older than what we tried to write: that has not arrived. It may yet, and
                # then makes our next write conflict, which is settled by reading again.
                self._wanted = self._wanted or attempted
            self.record = record
            self.role = Role.OWNER
            self.is_doubted = False
            return True
        self.record = record
        self._step_down()
        return False

    def was_stored(self, op_id: str, revision: int) -> bool:
        """Note that the store succeeded; return whether it was one that was waited for."""
        if not self._end(op_id):
            return False
        self._revision = revision
        self.record, self._storing = self._storing, None
        self.role = Role.OWNER
        return True

    def conflicted(self, op_id: str) -> bool:
        """Something else stands there; it has to be read. Return whether that was waited for."""
        if not self._end(op_id):
            return False
        self.is_doubted = True
        return True

    def unavailable(self, op_id: str) -> None:
        """Nobody knows; read before anything else."""
        if self._end(op_id):
            self.is_doubted = True

    def _is_ours(self, record: HandoverRecord, attempted: HandoverRecord | None) -> bool:
        known = attempted or (self.record if self.role is Role.OWNER else None)
        if known is None or record.migrator_id != self._migrator_id:
            return False
        return record.handover_epoch == known.handover_epoch

    def _step_down(self) -> None:
        self.role = Role.STANDBY
        self.is_doubted = False
        self._wanted = None
        self._decisions.clear()

    def _store(self, record: HandoverRecord, *, cause_id: str) -> StoreRecord:
        decisions, self._decisions = tuple(self._decisions), []
        self._storing = record
        return StoreRecord(
            op_id=self._begin("store"),
            record=record,
            revision=self._revision,
            decisions=decisions,
            cause_id=cause_id,
        )

    def _begin(self, what: str) -> str:
        require(self._under_way is None, "two operations on the record at once")
        self._operations += 1
        self._under_way = f"{what}-{self._operations}"
        return self._under_way

    def _end(self, op_id: str) -> bool:
        if op_id != self._under_way:
            return False
        self._under_way = None
        return True

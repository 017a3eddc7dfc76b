"""How long this node will be there, by the notices that hold now.

A notice comes by two ways and is repeated; it is one, by its kind and id. Each message carries what
is left of its grace at its sending, so that only this process's own clock counts. The earliest end
counts, of one notice (a repetition that was late on its way grants nothing) and of all of them. A
notice withdrawn counts no more.
"""

from typing import Final

from libs.contracts.preemption import NoticeKind, PreemptionNotice
from libs.contracts.preemption import NoticeWithdrawn as Withdrawn
from libs.kernel.bounded import RecentMap

NOTICES_MAX: Final = 64
"""Notices held at a time; past it the oldest is forgotten until it is repeated."""


class NodeLife:
    """The notices about this node, and when the first of them ends it."""

    def __init__(self) -> None:
        self._ends_at_ns: RecentMap[tuple[NoticeKind, str], int | None] = RecentMap(
            entries_max=NOTICES_MAX
        )
        self.is_evacuating = False
        """Whether so little time is left, or so little can be moved, that nothing new is begun."""

    @property
    def is_leaving(self) -> bool:
        """Whether the node has been told to end, whenever that may be."""
        return len(self._ends_at_ns) > 0

    @property
    def ends_at_ns(self) -> int | None:
        """The earliest end that is known."""
        if not self.is_leaving:
            return None
        return min(
            (at_ns for at_ns in self._ends_at_ns.values() if at_ns is not None), default=None
        )

    def grace_left_ns(self, *, now_ns: int) -> int | None:
        """Return the time until the node ends; None if it stays, or nobody knows."""
        ends_at_ns = self.ends_at_ns
        return None if ends_at_ns is None else max(0, ends_at_ns - now_ns)

    def take(self, notice: PreemptionNotice, *, now_ns: int) -> None:
        """Note a notice. That a node is likely to be taken some day changes nothing for it."""
        if notice.kind is NoticeKind.REBALANCE:
            return
        name = (notice.kind, notice.notice_id)
        ends_at_ns = self._ends_at_ns.get(name)
        if notice.grace_ns is not None:
            heard_ns = now_ns + notice.grace_ns
            ends_at_ns = heard_ns if ends_at_ns is None else min(ends_at_ns, heard_ns)
        self._ends_at_ns.put(name, ends_at_ns)

    def withdraw(self, withdrawn: Withdrawn) -> None:
        """Forget a notice; one that was never heard of is no matter."""
        self._ends_at_ns.pop((withdrawn.kind, withdrawn.notice_id))

"""Which nodes have been told to end, and until when.

A notice is repeated while it holds, so that what is heard anew replaces what was known: by
(node, kind, id), each with its own deadline on this planner's clock. A node that nobody has seen
yet keeps its notices, for it may report later than its watcher.
"""

from dataclasses import dataclass, field

from libs.contracts.preemption import NoticeKind, NoticeWithdrawn, PreemptionNotice
from libs.kernel.bounded import RecentMap
from services.planner.options import PlannerOptions

LEAVING_KINDS = frozenset({NoticeKind.PREEMPTION, NoticeKind.MAINTENANCE})
"""A rebalance only says that a node is likelier to go than others."""
NOTICES_PER_NODE_MAX = 64
"""Kept of one node; past it the oldest is forgotten. A cloud gives one or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """A notice as last repeated."""

    kind: NoticeKind
    deadline_at_ns: int | None
    heard_at_ns: int


@dataclass(slots=True, kw_only=True)
class _Node:
    node_id: str
    notices: RecentMap[tuple[NoticeKind, str], _Heard] = field(
        default_factory=lambda: RecentMap(entries_max=NOTICES_PER_NODE_MAX)
    )


class NoticeBoard:
    """All notices that hold."""

    def __init__(self, options: PlannerOptions) -> None:
        self._options = options
        self._nodes: RecentMap[str, _Node] = RecentMap(entries_max=options.nodes_noticed_max)

    def hear(self, notice: PreemptionNotice, *, now_ns: int) -> bool:
        """Note a notice; return whether it is new or its deadline has moved."""
        node = self._nodes.get(notice.node_id)
        if node is None:
            node = _Node(node_id=notice.node_id)
            self._nodes.put(notice.node_id, node)
        key = (notice.kind, notice.notice_id)
        known = node.notices.get(key)
        deadline_at_ns = None if notice.grace_ns is None else now_ns + notice.grace_ns
        if known is not None and self._is_same(known.deadline_at_ns, deadline_at_ns):
            deadline_at_ns = known.deadline_at_ns
        heard = _Heard(kind=notice.kind, deadline_at_ns=deadline_at_ns, heard_at_ns=now_ns)
        node.notices.put(key, heard)
        return known is None or known.deadline_at_ns != deadline_at_ns

    def withdraw(self, withdrawal: NoticeWithdrawn) -> bool:
        """Forget a notice; return whether it was known."""
        node = self._nodes.get(withdrawal.node_id)
        if node is None:
            return False
        return node.notices.pop((withdrawal.kind, withdrawal.notice_id)) is not None

    def is_leaving(self, node_id: str) -> bool:
        """Whether the node has been told to end."""
        return any(heard.kind in LEAVING_KINDS for heard in self._heard(node_id))

    def is_at_risk(self, node_id: str) -> bool:
        """Whether the node is likelier to be taken than others."""
        return any(heard.kind not in LEAVING_KINDS for heard in self._heard(node_id))

    def deadline_at_ns(self, node_id: str) -> int | None:
        """The earliest deadline of a node that leaves; None where nobody says."""
        deadlines = [
            heard.deadline_at_ns
            for heard in self._heard(node_id)
            if heard.kind in LEAVING_KINDS and heard.deadline_at_ns is not None
        ]
        return min(deadlines, default=None)

    def forget_old(self, *, now_ns: int) -> list[str]:
        """Forget what is no longer repeated and past its deadline; return the nodes concerned."""
        changed = []
        for node in self._nodes.values():
            old = [key for key, heard in node.notices.items() if self._is_old(heard, now_ns)]
            for key in old:
                node.notices.pop(key)
            if old:
                changed.append(node.node_id)
            if not len(node.notices):
                self._nodes.pop(node.node_id)
        return changed

    def _heard(self, node_id: str) -> list[_Heard]:
        node = self._nodes.get(node_id)
        return [] if node is None else node.notices.values()

    def _is_same(self, known_ns: int | None, heard_ns: int | None) -> bool:
        if known_ns is None or heard_ns is None:
            return known_ns is heard_ns
        return abs(known_ns - heard_ns) < self._options.deadline_change_ns_min

    def _is_old(self, heard: _Heard, now_ns: int) -> bool:
        quiet_since_ns = max(heard.heard_at_ns, heard.deadline_at_ns or 0)
        return now_ns - quiet_since_ns > self._options.notice_memory_ns

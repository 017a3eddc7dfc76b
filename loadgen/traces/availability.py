"""Which nodes there are, over time: what every trace of spot capacity comes down to."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChange:
    """What changed at one instant. An addition is when the node can be used, not when it was
    asked for; a removal is when it is gone."""

    at_ns: int
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    required_requests_per_s: float | None = None
    """The demand from now on, where the trace has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLife:
    """From a node's addition to its removal; None if it is there at the end of the trace."""

    node: str
    added_at_ns: int
    removed_at_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilityTrace:
    """Changes in order of time, at most one per instant, each possible after the ones before.

    Source says where the numbers come from. Raises: ConfigError where a change is impossible.
    """

    name: str
    source: str
    changes: tuple[NodeChange, ...]
    end_at_ns: int

    def __post_init__(self) -> None:
        present = Presence()
        latest_ns = -1
        for change in self.changes:
            if change.at_ns <= latest_ns:
                raise ConfigError(f"{self.name}: changes are not in order of time")
            latest_ns = change.at_ns
            explanation = present.apply(change)
            if explanation is not None:
                raise ConfigError(f"{self.name}: at {change.at_ns} ns {explanation}")
        if self.end_at_ns < latest_ns:
            raise ConfigError(f"{self.name}: ends before its last change")

    def counts(self) -> tuple[tuple[int, int], ...]:
        """Return (at_ns, nodes from then on) for each change of the number of nodes."""
        nodes = 0
        counts: list[tuple[int, int]] = []
        for change in self.changes:
            nodes += len(change.added) - len(change.removed)
            if not counts or counts[-1][1] != nodes:
                counts.append((change.at_ns, nodes))
        return tuple(counts)

    def nodes_at(self, at_ns: int) -> tuple[str, ...]:
        """Return the nodes there are right after this instant, sorted."""
        present = Presence()
        until = bisect_right(self.changes, at_ns, key=lambda change: change.at_ns)
        for change in self.changes[:until]:
            present.apply(change)
        return present.nodes()

    def node_ns(self) -> int:
        """Return the sum over all nodes of the time they were there, to the end of the trace."""
        total_ns = 0
        for change in self.changes:
            left_ns = self.end_at_ns - change.at_ns
            total_ns += left_ns * (len(change.added) - len(change.removed))
        return total_ns

    def window(self, *, start_ns: int, end_ns: int) -> "AvailabilityTrace":
        """Return the stretch from start to end, with time from 0 and its first nodes added at 0."""
        assert 0 <= start_ns < end_ns
        at_start = NodeChange(at_ns=0, added=self.nodes_at(start_ns))
        inside = (c for c in self.changes if start_ns < c.at_ns < end_ns)
        shifted = (replace(change, at_ns=change.at_ns - start_ns) for change in inside)
        return replace(self, changes=(at_start, *shifted), end_at_ns=end_ns - start_ns)

    def added_later(self, *, delay_ns: int) -> "AvailabilityTrace":
        """Return the trace with every addition after 0 delayed by launch and initialisation.

        A node that is gone before it could be used, or comes only after the end, never appears.
        """
        changes = [replace(change, added=(), removed=()) for change in self.changes]
        for life in self.lives():
            at_ns = life.added_at_ns + (delay_ns if life.added_at_ns else 0)
            if at_ns >= (self.end_at_ns if life.removed_at_ns is None else life.removed_at_ns):
                continue
            changes.append(NodeChange(at_ns=at_ns, added=(life.node,)))
            if life.removed_at_ns is not None:
                changes.append(NodeChange(at_ns=life.removed_at_ns, removed=(life.node,)))
        return replace(self, changes=merged(changes))

    def lives(self) -> tuple[NodeLife, ...]:
        """Return when each node came and went, in the order in which they came."""
        lives: list[NodeLife] = []
        open_at: dict[str, int] = {}
        for change in self.changes:
            for node in change.removed:
                index = open_at.pop(node)
                lives[index] = replace(lives[index], removed_at_ns=change.at_ns)
            for node in change.added:
                open_at[node] = len(lives)
                lives.append(NodeLife(node=node, added_at_ns=change.at_ns))
        return tuple(lives)


class Presence:
    """The nodes that are there while changes are applied one after another."""

    def __init__(self) -> None:
        self._nodes: dict[str, None] = {}

    def nodes(self) -> tuple[str, ...]:
        """Return them, sorted."""
        return tuple(sorted(self._nodes))

    def apply(self, change: NodeChange) -> str | None:
        """Apply a change; return why it is impossible, and then apply none of the rest of it."""
        for node in change.removed:
            if node not in self._nodes:
                return f"{node} is removed but is not there"
            del self._nodes[node]
        for node in change.added:
            if node in self._nodes:
                return f"{node} is added but is there already"
            self._nodes[node] = None
        return None


def merged(changes: list[NodeChange]) -> tuple[NodeChange, ...]:
    """Return the changes in order of time with those of one instant made one, empty ones left out.

    A name that is added and removed at the same instant is left out: nothing has changed.
    """
    return tuple(_merged(sorted(changes, key=lambda change: change.at_ns)))


def from_counts(
    counts: list[tuple[int, int]], *, name: str, source: str, end_at_ns: int, rng: Rng
) -> AvailabilityTrace:
    """Return a trace from (at_ns, nodes from then on), in order of time.

    Counts do not say which node goes: it is drawn from `rng`. A node that went never returns.
    """
    nodes: list[str] = []
    named = 0
    changes = []
    for at_ns, count in counts:
        added = tuple(f"node-{number}" for number in range(named, named + count - len(nodes)))
        named += len(added)
        removed = tuple(sorted(rng.sample(nodes, max(0, len(nodes) - count))))
        nodes = [node for node in nodes if node not in removed] + list(added)
        changes.append(NodeChange(at_ns=at_ns, added=added, removed=removed))
    return AvailabilityTrace(name=name, source=source, changes=merged(changes), end_at_ns=end_at_ns)


def _merged(changes: list[NodeChange]) -> Iterator[NodeChange]:
    for at_ns, group in groupby(changes, key=lambda change: change.at_ns):
        parts = list(group)
        added = [node for part in parts for node in part.added]
        removed = [node for part in parts for node in part.removed]
        rates = [p.required_requests_per_s for p in parts if p.required_requests_per_s is not None]
        both = set(added) & set(removed)
        change = NodeChange(
            at_ns=at_ns,
            added=tuple(node for node in added if node not in both),
            removed=tuple(node for node in removed if node not in both),
            required_requests_per_s=rates[-1] if rates else None,
        )
        if change.added or change.removed or change.required_requests_per_s is not None:
            yield change

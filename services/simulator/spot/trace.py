"""When nodes come and go, as the simulator takes it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpan:
    """From when a node can be used until it is gone; None: beyond the end."""

    node_id: str
    usable_at_ns: int
    gone_at_ns: int | None = None

    def present_ns(self, *, end_at_ns: int) -> int:
        """How long it is there until the end of the trace."""
        gone_at_ns = end_at_ns if self.gone_at_ns is None else min(end_at_ns, self.gone_at_ns)
        return max(0, gone_at_ns - self.usable_at_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTrace:
    """All nodes of a run, and when it ends."""

    name: str
    spans: tuple[NodeSpan, ...]
    end_at_ns: int
    on_demand_node_ns: int = 0
    """Of all the time that nodes are there, what was bought on demand."""

    @property
    def node_ns(self) -> int:
        """The time that all nodes are there, together."""
        return sum(span.present_ns(end_at_ns=self.end_at_ns) for span in self.spans)

    @property
    def nodes_max(self) -> int:
        """The most nodes that are there at a time."""
        edges = [(span.usable_at_ns, 1) for span in self.spans]
        edges += [(s.gone_at_ns, -1) for s in self.spans if s.gone_at_ns is not None]
        nodes = most = 0
        for _, change in sorted(edges):
            nodes += change
            most = max(most, nodes)
        return most

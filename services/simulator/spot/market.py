"""A cloud that sells nodes: spot as long as a trace offers them, on demand as many as are wanted.

It does for the planner's wish what a live provisioner does. The trace says from when to when each
of its nodes can be had, not that it must be: one that is given back can be asked for again until
the trace takes it away, with notice. Whatever is asked for comes after the time of a launch and is
paid from that moment on, until it is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from libs.contracts.reports import Market
from libs.kernel.units import NS_PER_S
from libs.sim.world import World
from services.planner.commands import PublishCapacity
from services.simulator.spot.options import SpotRunOptions
from services.simulator.spot.trace import NodeSpan

RELEASE_GRACE_NS: Final = 30 * NS_PER_S
"""For a node that is given back to hand over what it holds; the live provisioners' value."""


class Nodes(Protocol):
    """What the market does to nodes."""

    def add(self, node_id: str, *, market: Market, zone: str | None = None) -> None:
        """Start a node."""

    def warn(self, node_id: str, *, ends_at_ns: int) -> None:
        """Say when a node will end."""

    def end(self, node_id: str) -> None:
        """Take a node away."""


@dataclass(slots=True, kw_only=True)
class Purchase:
    """One node, from when it was asked for until it was gone."""

    node_id: str
    market: Market
    span: NodeSpan | None
    """What it occupies of the trace; None: on demand."""
    asked_at_ns: int
    gone_at_ns: int | None = None
    """None: it is still there."""
    is_launching: bool = True
    is_leaving: bool = False

    def paid_ns(self, *, from_ns: int, until_ns: int) -> int:
        """How long it was paid for within these bounds."""
        gone_at_ns = until_ns if self.gone_at_ns is None else min(until_ns, self.gone_at_ns)
        return max(0, gone_at_ns - max(from_ns, self.asked_at_ns))


class NodeMarket(Protocol):
    """Where the planner's wish for nodes is met."""

    def begin_trace(self) -> None:
        """From now on time counts."""

    def provide(self, capacity: PublishCapacity) -> None:
        """Meet a wish, which is whole each time."""

    def paid_ns(self, market: Market) -> int:
        """Return what was paid for from the beginning of the trace, at most to its end."""


class SpotMarket:
    """Sells, launches, warns and takes away."""

    def __init__(self, world: World, nodes: Nodes, options: SpotRunOptions) -> None:
        self._world = world
        self._nodes = nodes
        self._launch_ns = options.hardware.launch_ns
        self._grace_ns = options.grace_ns
        self._rng = world.rng.child("market")
        self._trace = options.trace
        spans = self._trace.spans
        self._offered = {span.node_id: span for span in spans if not span.usable_at_ns}
        """What can be had, held or not."""
        self._held: dict[str, Purchase] = {}
        self._begins_at_ns: int | None = None
        """When the trace began; None: the fleet warms up, and what is asked for is there."""
        self.purchases: list[Purchase] = []

    def begin_trace(self) -> None:
        """From now on the trace passes."""
        self._begins_at_ns = self._world.now_ns
        for span in self._trace.spans:
            if span.usable_at_ns:
                self._world.after(span.usable_at_ns, partial(self._offer, span))
            if span.gone_at_ns is not None:
                warned_ns = max(span.usable_at_ns, span.gone_at_ns - self._grace_ns)
                self._world.after(warned_ns, partial(self._withdraw, span))

    def paid_ns(self, market: Market) -> int:
        """Return what was paid for from the beginning of the trace to its end."""
        begins_at_ns = self._begins_at_ns or 0
        until_ns = begins_at_ns + self._trace.end_at_ns
        return sum(
            purchase.paid_ns(from_ns=begins_at_ns, until_ns=until_ns)
            for purchase in self.purchases
            if purchase.market is market
        )

    def provide(self, capacity: PublishCapacity) -> None:
        """Buy what is missing of each market, then give back what is named."""
        wanted = capacity.wanted
        for market, want, have in (
            (Market.SPOT, wanted.spot_nodes, capacity.spot_node_ids),
            (Market.ON_DEMAND, wanted.on_demand_nodes, capacity.on_demand_node_ids),
        ):
            joining = [p for p in self._bought(market) if p.node_id not in have]
            for _ in range(want - len(have) - len(joining)):
                self._buy(market)
        for node_id in wanted.nodes_to_release:
            purchase = self._held.get(node_id)
            if purchase is not None and not purchase.is_leaving:
                self._end_after(purchase, RELEASE_GRACE_NS)

    def _bought(self, market: Market) -> Sequence[Purchase]:
        """Those that are there to stay, or come."""
        return [p for p in self._held.values() if p.market is market and not p.is_leaving]

    # ------------------------------------------------------------------ buying

    def _buy(self, market: Market) -> None:
        span = None
        if market is Market.SPOT:
            taken = {p.span.node_id for p in self._held.values() if p.span is not None}
            free = [span for node_id, span in sorted(self._offered.items()) if node_id not in taken]
            if not free:
                return
            span = self._rng.choice(free)
        purchase = Purchase(
            node_id=f"{market.value.replace('_', '-')}-{len(self.purchases)}",
            market=market,
            span=span,
            asked_at_ns=self._world.now_ns,
        )
        self.purchases.append(purchase)
        self._held[purchase.node_id] = purchase
        after_ns = 0 if self._begins_at_ns is None else self._launch_ns
        self._world.after(after_ns, partial(self._launched, purchase))

    def _launched(self, purchase: Purchase) -> None:
        purchase.is_launching = False
        if purchase.node_id in self._held:
            self._nodes.add(purchase.node_id, market=purchase.market)

    # ------------------------------------------------------------------ what the trace does

    def _offer(self, span: NodeSpan) -> None:
        self._offered[span.node_id] = span

    def _withdraw(self, span: NodeSpan) -> None:
        """Take it from the market; whoever holds it has notice."""
        self._offered.pop(span.node_id, None)
        for purchase in list(self._held.values()):
            if purchase.span is span and not purchase.is_leaving:
                self._end_after(purchase, self._grace_ns)

    def _end_after(self, purchase: Purchase, after_ns: int) -> None:
        purchase.is_leaving = True
        if purchase.is_launching:
            self._gone(purchase)
            return
        self._nodes.warn(purchase.node_id, ends_at_ns=self._world.now_ns + after_ns)
        self._world.after(after_ns, partial(self._ended, purchase))

    def _ended(self, purchase: Purchase) -> None:
        self._nodes.end(purchase.node_id)
        self._gone(purchase)

    def _gone(self, purchase: Purchase) -> None:
        del self._held[purchase.node_id]
        purchase.gone_at_ns = self._world.now_ns

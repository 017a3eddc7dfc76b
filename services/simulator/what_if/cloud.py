"""The cloud of one cell: grants what the planner wishes while its zones have it, and takes it back.

Wishes are whole and repeated, so each is met afresh: what is too much is given back under notice,
what is missing is launched. Spot comes from the planner's preferred zones as far as the cell's part
of their capacity goes; when that shrinks, launches are cancelled first, then nodes drawn by lot get
notice. On-demand nodes always come, but no more nodes are rented at a time than `nodes_max`, those
under notice aside. A node costs from its launch to its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from libs.contracts.reports import Market
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from libs.sim.world import World
from services.planner.commands import PublishCapacity
from services.simulator.spot.market import RELEASE_GRACE_NS, Nodes
from services.simulator.what_if.zones import ZoneCapacity

GRACE_NS: Final = 30 * NS_PER_S
"""From the notice of a preemption to the end."""


@dataclass(slots=True, kw_only=True)
class _Node:
    node_id: str
    zone: str
    market: Market
    granted_at_ns: int
    is_up: bool = False
    is_leaving: bool = False


@dataclass(slots=True, kw_only=True)
class Bill:
    """What was rented."""

    spot_node_ns: int = 0
    on_demand_node_ns: int = 0
    nodes_launched: int = 0
    nodes_preempted: int = 0
    nodes_returned: int = 0
    nodes_max: int = 0

    def node_ns(self, market: Market) -> int:
        """Of one market."""
        return self.spot_node_ns if market is Market.SPOT else self.on_demand_node_ns

    def merge(self, other: "Bill") -> None:
        """Add what another cell rented; the most at a time need not have been at the same time."""
        self.spot_node_ns += other.spot_node_ns
        self.on_demand_node_ns += other.on_demand_node_ns
        self.nodes_launched += other.nodes_launched
        self.nodes_preempted += other.nodes_preempted
        self.nodes_returned += other.nodes_returned
        self.nodes_max += other.nodes_max


class CellCloud:
    """See the head of this file."""

    def __init__(
        self, world: World, nodes: Nodes, *, zones: Sequence[ZoneCapacity],
        nodes_per_zone: int, nodes_max: int, launch_ns: int, rng: Rng,
    ) -> None:  # fmt: skip
        self.bill = Bill()
        self._world = world
        self._cluster = nodes
        self._zones = {zone.name: zone for zone in zones}
        self._nodes_per_zone = nodes_per_zone
        self._share = {zone.name: zone.steps[0][1] for zone in zones}
        self._nodes_max = nodes_max
        self._launch_ns = launch_ns
        self._rng = rng
        self._nodes: dict[str, _Node] = {}
        self._begins_at_ns = 0

    def start_with(self, nodes: int) -> None:
        """Have so many nodes at once: spot as far as the zones have it, on-demand for the rest."""
        for _ in range(nodes):
            zone = self._zone_with_room(tuple(self._zones))
            market = Market.ON_DEMAND if zone is None else Market.SPOT
            self._come(self._grant(zone or self._emptiest_zone(), market))

    def begin_trace(self) -> None:
        """Let capacity change, and things cost, from now on."""
        self._begins_at_ns = self._world.now_ns
        for node in self._nodes.values():
            node.granted_at_ns = self._begins_at_ns
        for zone in self._zones.values():
            for at_ns, share in zone.steps[1:]:
                self._world.after(at_ns, partial(self._zone_changed, zone.name, share=share))

    def provide(self, capacity: PublishCapacity) -> None:
        """See NodeMarket."""
        wish = capacity.wanted
        for node_id in wish.nodes_to_release:
            node = self._nodes.get(node_id)
            if node is not None and node.is_up and not node.is_leaving:
                self.bill.nodes_returned += 1
                self._give_notice(node, grace_ns=RELEASE_GRACE_NS)
        for _ in range(self._missing(Market.SPOT, wanted=wish.spot_nodes)):
            zone = self._zone_with_room(wish.zones_preferred or tuple(self._zones))
            if zone is None:
                break
            self._launch(self._grant(zone, Market.SPOT))
        for _ in range(self._missing(Market.ON_DEMAND, wanted=wish.on_demand_nodes)):
            self._launch(self._grant(self._emptiest_zone(), Market.ON_DEMAND))

    def paid_ns(self, market: Market) -> int:
        """See NodeMarket; up to now."""
        there = [node for node in self._nodes.values() if node.market is market]
        ended_ns = self.bill.node_ns(market)
        return ended_ns + sum(self._world.now_ns - node.granted_at_ns for node in there)

    def close(self, *, end_at_ns: int) -> Bill:
        """Charge what is still there up to this instant, and return the whole bill."""
        for node in self._nodes.values():
            self._charge(node, until_ns=end_at_ns)
        self._nodes.clear()
        return self.bill

    # ------------------------------------------------------------------ zones

    def _zone_changed(self, zone: str, *, share: float) -> None:
        self._share[zone] = share
        in_zone = [n for n in self._spot_in(zone) if not n.is_leaving]
        surplus = len(in_zone) - self._allowed(zone)
        if surplus <= 0:
            return
        launching = [node for node in in_zone if not node.is_up][:surplus]
        for node in launching:
            self._end(node)
        victims = [node for node in in_zone if node.is_up]
        for node in self._rng.sample(victims, surplus - len(launching)):
            self.bill.nodes_preempted += 1
            self._give_notice(node, grace_ns=GRACE_NS)

    def _zone_with_room(self, preferred: Sequence[str]) -> str | None:
        """Return the first of these zones, then of all, that has capacity left."""
        for zone in (*preferred, *self._zones):
            if zone in self._zones and len(self._spot_in(zone)) < self._allowed(zone):
                return zone
        return None

    def _emptiest_zone(self) -> str:
        return min(self._zones, key=lambda z: (sum(n.zone == z for n in self._nodes.values()), z))

    def _allowed(self, zone: str) -> int:
        return int(self._share[zone] * self._nodes_per_zone)

    def _spot_in(self, zone: str) -> list[_Node]:
        return [n for n in self._nodes.values() if n.zone == zone and n.market is Market.SPOT]

    def _missing(self, market: Market, *, wanted: int) -> int:
        staying = [node.market for node in self._nodes.values() if not node.is_leaving]
        return min(wanted - staying.count(market), self._nodes_max - len(staying))

    # ------------------------------------------------------------------ nodes

    def _grant(self, zone: str, market: Market) -> _Node:
        self.bill.nodes_launched += 1
        node = _Node(
            node_id=f"node-{self.bill.nodes_launched}",
            zone=zone,
            market=market,
            granted_at_ns=self._world.now_ns,
        )
        self._nodes[node.node_id] = node
        self.bill.nodes_max = max(self.bill.nodes_max, len(self._nodes))
        return node

    def _launch(self, node: _Node) -> None:
        self._world.after(self._launch_ns, partial(self._come, node))

    def _come(self, node: _Node) -> None:
        if node.node_id not in self._nodes:
            return  # the zone ran short before it was up
        node.is_up = True
        self._cluster.add(node.node_id, market=node.market, zone=node.zone)

    def _give_notice(self, node: _Node, *, grace_ns: int) -> None:
        node.is_leaving = True
        self._cluster.warn(node.node_id, ends_at_ns=self._world.now_ns + grace_ns)
        self._world.after(grace_ns, partial(self._end, node))

    def _end(self, node: _Node) -> None:
        if self._nodes.pop(node.node_id, None) is None:
            return
        self._charge(node, until_ns=self._world.now_ns)
        if node.is_up:
            self._cluster.end(node.node_id)

    def _charge(self, node: _Node, *, until_ns: int) -> None:
        rented_ns = max(0, until_ns - node.granted_at_ns)
        if node.market is Market.SPOT:
            self.bill.spot_node_ns += rented_ns
        else:
            self.bill.on_demand_node_ns += rented_ns

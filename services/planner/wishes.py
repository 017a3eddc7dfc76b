"""How many nodes the planner would like, from demand, notices and what has been lost where."""

import math
from collections import deque
from dataclasses import replace

from libs.contracts.placement import CapacityWanted, Placement
from libs.policy.capacity import CapacityMix, OwnedNode, ZoneBoard, mix, nodes_to_release
from libs.policy.parallel_config import Candidate, ConfigSearch, Workload
from services.planner.commands import PublishCapacity
from services.planner.fleet import Fleet
from services.planner.options import PlannerOptions


class Wishes:
    """Keeps the zones' record and works out the wish, whole each time."""

    def __init__(self, options: PlannerOptions) -> None:
        self._options = options
        self._zones = ZoneBoard()
        self._zone_by_node: dict[str, str] = {}
        self._needs: deque[tuple[int, int]] = deque()
        """Instants and nodes needed then; each more than all that came later."""
        self._said: CapacityWanted | None = None
        self._said_at_ns = 0

    def fleet_changed(self, fleet: Fleet) -> None:
        """Bring the zones' record up to date: who came, who went or was told to go."""
        present = set(fleet.node_ids)
        for node_id in sorted(present - set(self._zone_by_node)):
            zone = fleet.zone_of(node_id)
            if zone is not None and not fleet.is_leaving(node_id):
                self._zone_by_node[node_id] = zone
                self._zones = self._zones.launched(zone)
        for node_id in sorted(self._zone_by_node):
            if node_id not in present or fleet.is_leaving(node_id):
                self._zones = self._zones.preempted(self._zone_by_node.pop(node_id))

    def next_command(
        self,
        fleet: Fleet,
        placement: Placement,
        *,
        requests_per_s: float,
        is_changed: bool,
        now_ns: int,
        cause_id: str,
    ) -> PublishCapacity | None:
        """Return the wish if it is another than was said last, or if that was long ago.

        None where the planner is not to ask for nodes.
        """
        is_due = now_ns - self._said_at_ns >= self._options.capacity_interval_ns
        if self._options.capacity.nodes_max == 0 or not (is_changed or is_due):
            return None
        needed = self._most_needed(
            self._nodes_needed(fleet, requests_per_s=requests_per_s), now_ns=now_ns
        )
        wanted = self._wanted(fleet, placement, nodes_needed=needed)
        if not is_due and self._said == wanted:
            return None
        self._said, self._said_at_ns = wanted, now_ns
        staying = [n for n in fleet.node_ids if not fleet.is_leaving(n)]
        return PublishCapacity(
            wanted=wanted,
            spot_node_ids=tuple(n for n in staying if fleet.is_spot(n)),
            on_demand_node_ids=tuple(n for n in staying if not fleet.is_spot(n)),
            cause_id=cause_id,
        )

    def _wanted(self, fleet: Fleet, placement: Placement, *, nodes_needed: int) -> CapacityWanted:
        staying = [node_id for node_id in fleet.node_ids if not fleet.is_leaving(node_id)]
        # A node at risk counts as one that is not there: its replacement is then in time.
        sure = [n for n in staying if fleet.is_spot(n) and not fleet.notices.is_at_risk(n)]
        wish = self._bounded(
            mix(
                nodes_needed=nodes_needed,
                nodes_extra=self._options.capacity.nodes_extra,
                spot_ready=len(sure),
            )
        )
        placed = {worker_id for r in placement.replicas for worker_id in r.worker_ids}
        owned = [
            OwnedNode(
                node_id=node_id,
                is_spot=fleet.is_spot(node_id),
                is_placed=bool(placed.intersection(fleet.workers_of(node_id))),
            )
            for node_id in staying
        ]
        counts: dict[str, int] = {}
        for zone in self._zone_by_node.values():
            counts[zone] = counts.get(zone, 0) + 1
        return CapacityWanted(
            alias=self._options.alias,
            plan_revision=placement.plan_revision,
            spot_nodes=wish.spot_nodes,
            on_demand_nodes=wish.on_demand_nodes,
            zones_preferred=self._zones.preferred(nodes=counts)[:64],
            nodes_to_release=nodes_to_release(owned, wish),
            reason=f"{nodes_needed} nodes are needed; {len(sure)} spot nodes are sure to stay",
        )

    def _most_needed(self, nodes: int, *, now_ns: int) -> int:
        """Return the most that was needed lately."""
        while self._needs and self._needs[-1][1] <= nodes:
            self._needs.pop()
        self._needs.append((now_ns, nodes))
        while now_ns - self._needs[0][0] > self._options.capacity.release_after_ns:
            self._needs.popleft()
        return self._needs[0][1]

    def _nodes_needed(self, fleet: Fleet, *, requests_per_s: float) -> int:
        """The fewest nodes that keep up at nearly the least latency; all there may be if none does.

        The least latency itself may take twice the nodes, for a gain of some per cent.
        """
        options = self._options
        per_node = self._workers_per_node(fleet)
        found = ConfigSearch(
            profile=options.profile,
            workload=Workload(requests_per_s=requests_per_s),
            workers=options.capacity.nodes_max * per_node,
            memory_bytes=fleet.memory_bytes_min,
            options=replace(
                options.plan.search,
                uses_all_workers=False,
                near_tie_percent=options.capacity.latency_slack_percent,
            ),
            memory=fleet.replica_memory,
        ).choose()
        nodes = options.capacity.nodes_max
        if isinstance(found, Candidate):
            nodes = math.ceil(found.config.workers / per_node)
        return max(options.capacity.nodes_min, min(options.capacity.nodes_max, nodes))

    def _workers_per_node(self, fleet: Fleet) -> int:
        counts = [len(fleet.workers_of(node_id)) for node_id in fleet.node_ids]
        return max(counts, default=self._options.capacity.workers_per_node)

    def _bounded(self, wish: CapacityMix) -> CapacityMix:
        nodes_max = self._options.capacity.nodes_max
        spot = min(wish.spot_nodes, nodes_max)
        return CapacityMix(spot_nodes=spot, on_demand_nodes=min(wish.on_demand_nodes, nodes_max))

"""Whether a fleet that starts has gathered: its first placement then is its last for a while.

Processes that start together come up seconds apart. To place each as it comes makes one hand-over
after another, most of them given up when the next placement comes.
"""

from libs.contracts.placement import Placement
from services.planner.fleet import Fleet
from services.planner.options import PlannerOptions


class Gathering:
    """Waits for the nodes that are expected, for a while from the first of them on."""

    def __init__(self, options: PlannerOptions) -> None:
        self._options = options
        self._began_at_ns: int | None = None
        """When the first node was there."""

    def is_under_way(self, fleet: Fleet, placement: Placement, *, now_ns: int) -> bool:
        """Whether more nodes are to be waited for; never where something is placed already."""
        if placement.replicas or not fleet.node_ids:
            self._began_at_ns = None
            return False
        if self._began_at_ns is None:
            self._began_at_ns = now_ns
        is_patient = now_ns - self._began_at_ns < self._options.gathering_ns_max
        return is_patient and len(fleet.node_ids) < self._options.nodes_expected

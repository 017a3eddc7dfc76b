"""What the planner shows on its metrics port."""

from collections.abc import Callable
from functools import partial
from typing import Final

from libs.contracts.placement import Placement
from libs.runtime.metrics import Metrics, Read
from services.planner.core import PlannerCore

MS_PER_S: Final = 1000
_COUNTERS: Final = {
    "plans_made": "plans worked out, whether or not they changed anything",
    "placements_committed": "placements that replaced another",
    "times_fenced": "writes that another planner's take-over made fail",
    "workers_lost": "workers declared dead by their silence",
    "notices_heard": "notices that a node will end",
    "notices_of_unknown_nodes": "of those, about nodes without a worker known here",
    "placements_unreadable": "stored placements that could not be read",
    "store_failures": "reads and writes that the broker did not answer",
}


def planner_metrics(
    core: PlannerCore, *, plan_ms_recent: Read, messages_unsent: Read, messages_refused: Read
) -> Metrics:
    """Bind everything to what it shows; nothing is computed until somebody asks."""
    metrics = Metrics(service="planner")
    for name, help_text in _COUNTERS.items():
        metrics.show_counter(name, help_text, partial(getattr, core.counters, name))

    def of_placement(read: Callable[[Placement], int]) -> Callable[[], int]:
        return lambda: 0 if core.placement is None else read(core.placement)

    show = metrics.show_gauge
    show("is_leading", "1: decides", lambda: core.leadership.is_leading)
    show("plan_revision", "placement committed last", of_placement(lambda p: p.plan_revision))
    show("replicas", "replicas it has", of_placement(lambda p: len(p.replicas)))
    show("nodes_live", "nodes heard of", lambda: len(core.fleet.node_ids))
    show(
        "nodes_leaving",
        "of those, under notice",
        lambda: sum(map(core.fleet.is_leaving, core.fleet.node_ids)),
    )
    show("requests_per_second", "arrivals over the window", lambda: core.requests_per_s)
    show("no_shape_fits", "1: there is no plan for these nodes", lambda: bool(core.why_no_plan))
    show(
        "plan_seconds_recent",
        "the plan worked out last",
        lambda: plan_ms_recent() / MS_PER_S,
    )
    metrics.show_counter("messages_unsent", "that the broker did not take", messages_unsent)
    metrics.show_counter("messages_refused", "that could not be read", messages_refused)
    return metrics

"""What the planner shows on its metrics port."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

from libs.runtime.metrics import Metrics
from services.planner.core import PlannerCounters
from services.planner.shell import PlannerShell


def planner_metrics(shell: PlannerShell) -> Metrics:
    """Bind every gauge to what it shows; nothing is computed until somebody asks."""
    metrics = Metrics(service="planner")
    core = shell.core

    def show(name: str, read: Callable[[], float]) -> None:
        metrics.gauge(name, name.replace("_", " ")).set_function(read)

    for counter in fields(PlannerCounters):
        show(counter.name, partial(getattr, core.counters, counter.name))
    show("is_leading", lambda: core.leadership.is_leading)
    show("plan_revision", lambda: 0 if core.placement is None else core.placement.plan_revision)
    show("replicas", lambda: 0 if core.placement is None else len(core.placement.replicas))
    show("nodes_live", lambda: len(core.fleet.node_ids))
    show("nodes_leaving", lambda: sum(map(core.fleet.is_leaving, core.fleet.node_ids)))
    show("requests_per_s", lambda: core.requests_per_s)
    show("no_shape_fits", lambda: bool(core.why_no_plan))
    show("plan_ms_recent", lambda: shell.plan_ms_recent)
    show("messages_unsent", lambda: shell.messages_unsent)
    show("messages_refused", lambda: shell.actor.events_refused)
    return metrics

"""What the offline queue shows on its metrics port."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

from libs.runtime.metrics import Metrics
from services.offline_queue.core import QueueCounters
from services.offline_queue.shell import QueueShell


def offline_metrics(shell: QueueShell) -> Metrics:
    """Bind every gauge to what it shows; nothing is computed until somebody asks."""
    metrics = Metrics(service="offline_queue")
    core = shell.core

    def show(name: str, read: Callable[[], float]) -> None:
        metrics.gauge(name, name.replace("_", " ")).set_function(read)

    for counter in fields(QueueCounters):
        show(counter.name, partial(getattr, core.counters, counter.name))
    show("tokens_harvested", lambda: shell.tokens_harvested)
    show("batches_open", lambda: core.due().batches_open)
    show("lines_left", lambda: core.due().lines_left)
    show("lines_running", core.intake.running)
    show("parts_held", lambda: len(core.intake.parts))
    show("tokens_due", lambda: core.due().tokens)
    show("laxity_min_seconds", lambda: core.due().laxity_s_min or 0.0)
    show("harvest_tokens_per_second", lambda: core.harvest.rate.tokens_per_s)
    show("workers_heard", lambda: core.harvest.workers)
    show("messages_unsent", lambda: shell.messages_unsent)
    show("messages_refused", lambda: shell.actor.events_refused)
    return metrics

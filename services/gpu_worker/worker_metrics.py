"""What the worker shows on its metrics port: its counters, and its latest report."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Final

from libs.contracts.reports import WorkerReport
from libs.engine.safepoints import SafepointCounters
from libs.engine.scheduling.tally import CoserveTally
from libs.runtime.metrics import Metrics
from services.gpu_worker.checkpoint_options import CheckpointCounters
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.guarding import GuardCounters
from services.gpu_worker.shell import WorkerShell
from services.gpu_worker.state import WorkerCounters

REPORTED: Final = (
    "blocks_total",
    "blocks_free",
    "sessions_running",
    "sessions_waiting",
    "tokens_waiting",
    "tokens_generated",
    "steps",
    "step_ms_recent",
    "offline_running",
    "offline_waiting",
    "offline_tokens_waiting",
    "blocks_offline",
    "blocks_offline_stored",
    "blocks_reserved_for_online",
    "is_profile_off",
    "prediction_error",
)
"""Fields of WorkerReport that are numbers worth a line in a chart."""


def worker_metrics(
    core: WorkerCore, shell: WorkerShell, *, safepoints: SafepointCounters | None = None
) -> Metrics:
    """Bind every gauge to what it shows; nothing is computed until somebody asks."""
    metrics = Metrics(service="worker")

    def show(name: str, read: Callable[[], float]) -> None:
        metrics.gauge(name, name.replace("_", " ")).set_function(read)

    for counter in fields(WorkerCounters):
        show(counter.name, partial(getattr, core.counters, counter.name))
    for counter in fields(CoserveTally):
        show(counter.name, partial(getattr, core.tally, counter.name))
    for counter in fields(CheckpointCounters):
        read = partial(getattr, core.checkpointing.counters, counter.name)
        show(f"checkpoint_{counter.name}", read)
    for counter in fields(GuardCounters):
        show(f"guard_{counter.name}", partial(getattr, core.guarding.counters, counter.name))
    for name in ("blocks_held", "copying_ns", "stepping_ns"):
        show(f"checkpoint_{name}", partial(getattr, core.checkpointing, name))
    if safepoints is not None:
        for counter in fields(SafepointCounters):
            show(f"safepoint_{counter.name}", partial(getattr, safepoints, counter.name))
    for name in REPORTED:
        show(name, partial(_reported, core, name))
    show("sessions_held", lambda: core.sessions_held)
    show("tokens_resent", lambda: core.tokens_resent)
    show("messages_dropped", lambda: shell.messages_dropped)
    show("messages_refused", lambda: shell.actor.events_refused)
    return metrics


def _reported(core: WorkerCore, name: str) -> float:
    report: WorkerReport | None = core.report_latest
    return 0.0 if report is None else float(getattr(report, name))

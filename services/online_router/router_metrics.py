"""What a router shows on its metrics port; nothing is computed until somebody asks."""

from functools import partial

from libs.kernel.units import seconds
from libs.runtime.metrics import Metrics, Read
from services.online_router.state import RouterCounters, RouterState

_COUNTERS = {
    "accepted": ("requests_accepted", "requests promised to a client"),
    "finished": ("requests_finished", "requests that got their whole answer"),
    "adopted": ("sessions_adopted", "sessions taken over from a router that died"),
    "resumed": ("sessions_migrated", "times that a session went on to another worker"),
    "stale_dropped": ("stale_messages_dropped", "messages of an older epoch or owner"),
    "unanswerable": ("submissions_unanswerable", "submissions without a reply subject"),
    "workers_lost": ("workers_lost", "workers declared dead"),
    "times_fenced": ("times_fenced", "times that another router took this one's sessions"),
}


def router_metrics(state: RouterState, *, messages_unsent: Read) -> Metrics:
    """Bind everything to what it shows."""
    metrics = Metrics(service="router")
    for field, (name, help_text) in _COUNTERS.items():
        metrics.show_counter(name, help_text, partial(getattr, state.counters, field))
    _show_refusals(metrics, state.counters)
    _show_latencies(metrics, state)
    metrics.show_gauge("sessions_open", "requests under way", lambda: len(state.sessions))
    metrics.show_gauge(
        "sessions_waiting",
        "accepted requests that no worker has room for",
        lambda: state.sessions_waiting,
    )
    metrics.show_counter("messages_unsent", "that the broker did not take", messages_unsent)
    return metrics


def _show_refusals(metrics: Metrics, counters: RouterCounters) -> None:
    for rejected in counters.rejected_by_reason:
        metrics.show_counter(
            "requests_rejected",
            "submissions refused, clients' repeats included",
            partial(counters.rejected_by_reason.__getitem__, rejected),
            {"reason": str(rejected)},
        )
    for failed in counters.failed_by_reason:
        metrics.show_counter(
            "requests_failed",
            "accepted requests that ended without their answer",
            partial(counters.failed_by_reason.__getitem__, failed),
            {"reason": str(failed)},
        )


def _show_latencies(metrics: Metrics, state: RouterState) -> None:
    latencies = state.latencies
    for work, seen in latencies.by_work.items():
        labels = {"work": str(work)}
        metrics.show_durations(
            "queue_seconds", "from a submission to its first dispatch", seen.queue, labels
        )
        metrics.show_durations(
            "ttft_seconds", "from a submission to its first token", seen.ttft, labels
        )
        metrics.show_durations(
            "tpot_seconds", "per later token, averaged over one answer", seen.tpot, labels
        )
        metrics.show_durations(
            "e2e_seconds", "from a submission to the end of a whole answer", seen.e2e, labels
        )
        metrics.show_counter(
            "tokens_relayed",
            "tokens sent to clients",
            partial(getattr, seen, "tokens_relayed"),
            labels,
        )
    metrics.show_counter(
        "online_requests_ended",
        "online requests that ended, but for those their client cancelled",
        lambda: latencies.online_ended,
    )
    metrics.show_counter(
        "online_requests_within_slo",
        "of those, finished within both objectives",
        lambda: latencies.online_within_slo,
    )
    objective = latencies.objective
    metrics.show_gauge("ttft_slo_seconds", "the objective", lambda: seconds(objective.ttft_ns))
    metrics.show_gauge("tpot_slo_seconds", "the objective", lambda: seconds(objective.tpot_ns))

"""What the worker shows on its metrics port: its counters, and its latest report."""

from collections.abc import Callable
from functools import partial
from typing import Final

from libs.contracts.reports import WorkerReport
from libs.engine.safepoints import SafepointCounters
from libs.kernel.units import NS_PER_S
from libs.runtime.metrics import Metrics, Read
from services.gpu_worker.core import WorkerCore

MS_PER_S: Final = 1000
_COUNTERS: Final = {
    "sessions_started": "sessions taken from routers",
    "sessions_rebound": "sessions that another router took over",
    "sessions_refused": "sessions not taken, or given back",
    "sessions_abandoned": "finished, and never acknowledged in all the time allowed",
    "sessions_released": "sent on to another replica, their KV perhaps before them",
    "stale_dropped": "messages of an earlier epoch",
    "replicas_broken": "positions that lost a peer",
}
_TALLY: Final = {
    "steps_online": "steps without offline work",
    "steps_mixed": "steps of both kinds of work",
    "steps_offline": "steps without online work",
    "steps_yielded": "offline steps given up for an online arrival",
    "tokens_online": "tokens of online sessions, computed for the first time",
    "tokens_offline": "tokens harvested: of offline sessions, computed for the first time",
    "tokens_yielded": "tokens thrown away with the steps that yielded",
    "tokens_repeated": "tokens computed once more, after an eviction",
    "evictions_stored": "offline sessions evicted whose KV can be copied back",
    "evictions_recomputed": "offline sessions evicted that are computed again",
    "preemptions": "sessions that lost their blocks to their own kind",
    "ttft_met": "first tokens of online sessions within the objective",
    "ttft_missed": "first tokens of online sessions after the objective",
    "tbt_met": "further tokens of online sessions within the objective",
    "tbt_missed": "further tokens of online sessions after the objective",
}
_CHECKPOINTS: Final = {
    "blocks_stored": "KV blocks copied to host memory",
    "blocks_loaded": "KV blocks copied back from there",
    "blocks_flushed": "of those stored, blocks of sessions that had been evicted already",
    "blocks_given_up": "KV blocks of evicted sessions, cheaper to compute again",
    "blocks_corrupt": "KV blocks found changed in host memory, and computed again",
    "copies_failed": "copies to or from host memory that failed",
}
_GUARD: Final = {
    "copies": "copies of running sessions' KV to another node",
    "copies_failed": "such copies that failed",
    "blocks_copied": "KV blocks kept on another node",
    "bytes_copied": "bytes sent for that",
}
_SAFEPOINTS: Final = {
    "steps": "steps that had safepoints",
    "checks": "safepoints passed",
    "yields": "steps given up at one",
}
_SAFEPOINT_TIMES: Final = {
    "safepoint_step_seconds": ("in steps that had safepoints", "step_ns"),
    "safepoint_check_seconds": ("in checks at safepoints", "check_ns"),
    "safepoint_stop_seconds": ("from the signals to the stops", "stop_ns"),
}
_REPORTED_COUNTERS: Final = {
    "tokens_generated": "tokens computed",
    "tokens_recomputed": "tokens of moved sessions that no copy of KV spared",
    "steps": "engine steps",
}
_REPORTED_GAUGES: Final[dict[str, tuple[str, Callable[[WorkerReport], float]]]] = {
    "kv_blocks": ("KV blocks there are", lambda r: r.blocks_total),
    "kv_blocks_free": ("KV blocks to be had without preempting", lambda r: r.blocks_free),
    "kv_usage_ratio": ("share of the KV blocks in use", lambda r: _kv_usage(r)),
    "sessions_running": ("sessions in the batch", lambda r: r.sessions_running),
    "sessions_waiting": ("sessions that wait for the batch", lambda r: r.sessions_waiting),
    "prompt_tokens_waiting": ("prompt tokens not yet computed", lambda r: r.tokens_waiting),
    "step_seconds_recent": (
        "an engine step, averaged over about the last ten",
        lambda r: r.step_ms_recent / MS_PER_S,
    ),
    "weights_bytes": ("weights held", lambda r: r.weights_bytes),
    "is_serving": ("1: takes sessions", lambda r: r.is_serving),
    "offline_running": ("offline sessions in the batch", lambda r: r.offline_running),
    "offline_waiting": ("offline sessions that wait", lambda r: r.offline_waiting),
    "kv_blocks_offline": ("KV blocks of offline sessions", lambda r: r.blocks_offline),
    "kv_blocks_offline_stored": (
        "of those, blocks that may be evicted at no cost",
        lambda r: r.blocks_offline_stored,
    ),
    "kv_blocks_reserved": (
        "KV blocks kept for online work",
        lambda r: r.blocks_reserved_for_online,
    ),
    "is_profile_off": ("1: steps no longer take what was profiled", lambda r: r.is_profile_off),
    "prediction_error_ratio": ("mean error of predicted step times", lambda r: r.prediction_error),
}


def worker_metrics(
    core: WorkerCore,
    *,
    messages_dropped: Read,
    messages_refused: Read,
    safepoints: SafepointCounters | None = None,
) -> Metrics:
    """Bind everything to what it shows; nothing is computed until somebody asks."""
    metrics = Metrics(service="worker")
    for name, help_text in _COUNTERS.items():
        metrics.show_counter(name, help_text, partial(getattr, core.counters, name))
    for name, help_text in _REPORTED_COUNTERS.items():
        metrics.show_counter(name, help_text, partial(_reported, core, _field(name)))
    for name, help_text in _TALLY.items():
        metrics.show_counter(name, help_text, partial(getattr, core.tally, name))
    for name, (help_text, read) in _REPORTED_GAUGES.items():
        metrics.show_gauge(name, help_text, partial(_reported, core, read))
    metrics.show_gauge("sessions_held", "not yet forgotten", lambda: core.sessions_held)
    metrics.show_counter(
        "tokens_resent", "tokens that a router had not acknowledged", lambda: core.tokens_resent
    )
    metrics.show_counter("messages_dropped", "that the broker did not take", messages_dropped)
    metrics.show_counter("messages_refused", "that could not be read", messages_refused)
    _show_checkpoints(metrics, core)
    if safepoints is not None:
        _show_safepoints(metrics, safepoints)
    return metrics


def _show_checkpoints(metrics: Metrics, core: WorkerCore) -> None:
    kept, guard = core.checkpointing, core.guarding.counters
    for name, help_text in _CHECKPOINTS.items():
        metrics.show_counter(f"checkpoint_{name}", help_text, partial(getattr, kept.counters, name))
    for name, help_text in _GUARD.items():
        metrics.show_counter(f"guard_{name}", help_text, partial(getattr, guard, name))
    metrics.show_gauge("checkpoint_blocks", "KV blocks in host memory", lambda: kept.blocks_held)
    for name, help_text, read in (
        ("copying", "in copies to host memory, of the position that serves", _copying_ns),
        ("stepping", "in steps of the position that serves", _stepping_ns),
    ):
        seconds = partial(_seconds, partial(read, core))
        metrics.show_gauge(f"checkpoint_{name}_seconds", help_text, seconds)


def _show_safepoints(metrics: Metrics, safepoints: SafepointCounters) -> None:
    for name, help_text in _SAFEPOINTS.items():
        metrics.show_counter(f"safepoint_{name}", help_text, partial(getattr, safepoints, name))
    for name, (help_text, field) in _SAFEPOINT_TIMES.items():
        read = partial(_seconds, partial(getattr, safepoints, field))
        metrics.show_counter(name, help_text, read)


def _copying_ns(core: WorkerCore) -> int:
    return core.checkpointing.copying_ns


def _stepping_ns(core: WorkerCore) -> int:
    return core.checkpointing.stepping_ns


def _seconds(read_ns: Callable[[], int]) -> float:
    return read_ns() / NS_PER_S


def _field(name: str) -> Callable[[WorkerReport], float]:
    return lambda report: float(getattr(report, name))


def _reported(core: WorkerCore, read: Callable[[WorkerReport], float]) -> float:
    report: WorkerReport | None = core.report_latest
    return 0.0 if report is None else float(read(report))


def _kv_usage(report: WorkerReport) -> float:
    return (report.blocks_total - report.blocks_free) / max(1, report.blocks_total)

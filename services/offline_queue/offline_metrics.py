"""What the offline queue shows on its metrics port: its counters, and what is before it."""

from functools import partial
from typing import Final

from libs.runtime.metrics import Metrics, Read
from services.offline_queue.core import QueueCore

_COUNTERS: Final = {
    "lines_completed": "lines and jobs answered",
    "lines_failed": "lines and jobs that ended without an answer",
    "lines_expired": "lines and jobs that nobody had taken up at their deadline",
    "lines_put_off": "lines given back, to be asked again later",
    "parts_leased": "parts of batches taken up",
    "parts_leased_again": "of them, those that a queue had taken up before",
    "parts_given_up": "parts that failed too often",
}


def offline_metrics(
    core: QueueCore, *, tokens_harvested: Read, messages_unsent: Read, messages_refused: Read
) -> Metrics:
    """Bind everything to what it shows; nothing is computed until somebody asks."""
    metrics = Metrics(service="offline_queue")
    for name, help_text in _COUNTERS.items():
        metrics.show_counter(name, help_text, partial(getattr, core.counters, name))
    metrics.show_counter("tokens_harvested", "of prompts and answers", tokens_harvested)
    metrics.show_counter("messages_unsent", "that the broker did not take", messages_unsent)
    metrics.show_counter("messages_refused", "that could not be read", messages_refused)
    for name, help_text, read in (
        ("batches_open", "batches of all queues, not final", lambda: core.due().batches_open),
        ("lines_left", "lines of all queues, not ended", lambda: core.due().lines_left),
        ("lines_running", "lines and jobs submitted, not ended", core.intake.running),
        ("parts_held", "parts leased, not acknowledged", lambda: len(core.intake.parts)),
        ("tokens_due", "predicted tokens of all lines not ended", lambda: core.due().tokens),
        (
            "laxity_min_seconds",
            "least time to spare of any batch; negative: it will be late",
            lambda: core.due().laxity_s_min or 0.0,
        ),
        (
            "harvest_tokens_per_second",
            "what offline work got lately",
            lambda: core.harvest.rate.tokens_per_s,
        ),
        ("workers_heard", "workers that reported lately", lambda: core.harvest.workers),
    ):
        metrics.show_gauge(name, help_text, read)
    return metrics

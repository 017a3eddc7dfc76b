"""What the watcher shows on its metrics port."""

from functools import partial
from typing import Final

from libs.runtime.metrics import Metrics
from libs.runtime.notice_socket import NoticeServer
from services.preemption_watcher.bus_link import BusLink
from services.preemption_watcher.core import WatcherCore

_COUNTERS: Final = {
    "notices_raised": "notices given",
    "notices_changed": "notices whose deadline moved",
    "notices_withdrawn": "notices taken back",
    "notices_expired": "notices past their deadline with the node still there",
    "notices_refused": "more than may be held at a time",
    "requests_rejected": "what somebody asked for and did not get",
}
_SOURCE_COUNTERS: Final = {
    "polls": "questions to a source",
    "failures": "of those, without an answer",
    "payloads_unreadable": "answers that say something unknown",
}


def watcher_metrics(core: WatcherCore, link: BusLink, socket: NoticeServer | None) -> Metrics:
    """Bind everything to what it shows; nothing is computed until somebody asks."""
    metrics = Metrics(service="watcher")
    for name, help_text in _COUNTERS.items():
        metrics.show_counter(name, help_text, partial(getattr, core.counters, name))
    metrics.show_gauge("notices_held", "notices that hold now", lambda: core.notices_held)
    metrics.show_counter(
        "messages_dropped", "messages that the broker did not take", lambda: link.messages_dropped
    )
    if socket is not None:
        metrics.show_gauge(
            "workers_connected", "workers of this node that listen", lambda: socket.connections
        )
        metrics.show_counter(
            "workers_dropped", "of those, cut off as too slow", lambda: socket.connections_dropped
        )
    for source, health in core.polling.sources.items():
        labels = {"source": source}
        for name, help_text in _SOURCE_COUNTERS.items():
            read = partial(getattr, health, name)
            metrics.show_counter(f"source_{name}", help_text, read, labels)
        metrics.show_gauge(
            "source_failures_in_row",
            "failures since the last answer",
            partial(getattr, health, "failures_in_row"),
            labels,
        )
    return metrics

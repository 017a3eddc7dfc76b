"""What the watcher shows on its metrics port."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

from libs.runtime.metrics import Metrics
from libs.runtime.notice_socket import NoticeServer
from services.preemption_watcher.bus_link import BusLink
from services.preemption_watcher.core import WatcherCore, WatcherCounters

SOURCE_COUNTS = ("polls", "failures", "failures_in_row", "payloads_unreadable")


def watcher_metrics(core: WatcherCore, link: BusLink, socket: NoticeServer | None) -> Metrics:
    """Bind every gauge to what it shows; nothing is computed until somebody asks."""
    metrics = Metrics(service="watcher")

    def show(name: str, read: Callable[[], float]) -> None:
        metrics.gauge(name, name.replace("_", " ")).set_function(read)

    for counter in fields(WatcherCounters):
        show(counter.name, partial(getattr, core.counters, counter.name))
    show("notices_held", lambda: core.notices_held)
    show("messages_dropped", lambda: link.messages_dropped)
    if socket is not None:
        show("workers_connected", lambda: socket.connections)
        show("workers_dropped", lambda: socket.connections_dropped)
    for source, health in core.polling.sources.items():
        for name in SOURCE_COUNTS:
            gauge = metrics.gauge(
                f"source_{name}", f"{name.replace('_', ' ')} of a source", {"source": source}
            )
            gauge.set_function(partial(getattr, health, name))
    return metrics

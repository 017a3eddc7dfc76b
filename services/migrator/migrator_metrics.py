"""What a migrator shows on its metrics port; of the stored record, as this process knows it."""

from collections.abc import Callable
from typing import Final

from libs.contracts.handover_record import HandoverRecord
from libs.kernel.units import seconds
from libs.runtime.metrics import Metrics, Read
from services.migrator.core import MigratorCore
from services.migrator.ownership import Role

_Read = Callable[[HandoverRecord], float]

_GAUGES: Final[dict[str, tuple[str, _Read]]] = {
    "plan_revision": ("placement pursued", lambda r: r.plan_revision),
    "plan_revision_reached": ("placement that the fleet has", lambda r: r.plan_revision_reached),
    "handovers_under_way": ("hand-overs that have not ended", lambda r: len(r.under_way)),
    "stall_seconds_recent": (
        "from stop to release, of the hand-over that ended last",
        lambda r: seconds(r.ended[-1].stall_ns) if r.ended else 0.0,
    ),
}
_COUNTERS: Final[dict[str, tuple[str, _Read]]] = {
    "handovers_done": ("hand-overs carried out", lambda r: r.handovers_done),
    "handovers_abandoned": ("hand-overs undone", lambda r: r.handovers_abandoned),
    "weight_bytes_moved": ("weights fetched from peers", lambda r: r.weight_bytes_moved),
    "kv_bytes_moved": ("KV sent between workers", lambda r: r.kv_bytes_moved),
}


def migrator_metrics(core: MigratorCore, *, messages_unsent: Read) -> Metrics:
    """Bind everything to what it shows; nothing is computed until somebody asks."""
    metrics = Metrics(service="migrator")
    ownership = core.ownership
    metrics.show_gauge(
        "is_owner", "1: conducts the hand-overs", lambda: ownership.role is Role.OWNER
    )
    metrics.show_counter("messages_unsent", "that the broker did not take", messages_unsent)
    for name, (help_text, read) in _GAUGES.items():
        metrics.show_gauge(name, help_text, _reader(core, read))
    for name, (help_text, read) in _COUNTERS.items():
        metrics.show_counter(name, help_text, _reader(core, read))
    return metrics


def _reader(core: MigratorCore, read: _Read) -> Callable[[], float]:
    def value() -> float:
        record = core.ownership.record
        return 0.0 if record is None else float(read(record))

    return value

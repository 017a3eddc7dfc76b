"""What a migrator shows on its metrics port; of the stored record, as this process knows it."""

from collections.abc import Callable

from libs.contracts.handover_record import HandoverRecord
from libs.runtime.metrics import Metrics
from services.migrator.ownership import Role
from services.migrator.shell import MigratorShell

_FROM_RECORD: dict[str, tuple[str, Callable[[HandoverRecord], int]]] = {
    "plan_revision": ("placement pursued", lambda r: r.plan_revision),
    "plan_revision_reached": ("placement that the fleet has", lambda r: r.plan_revision_reached),
    "handovers_under_way": ("hand-overs that have not ended", lambda r: len(r.under_way)),
    "handovers_done": ("hand-overs carried out", lambda r: r.handovers_done),
    "handovers_abandoned": ("hand-overs undone", lambda r: r.handovers_abandoned),
    "weight_bytes_moved": ("weights fetched from peers", lambda r: r.weight_bytes_moved),
    "kv_bytes_moved": ("KV sent between workers", lambda r: r.kv_bytes_moved),
}


def register_metrics(metrics: Metrics, shell: MigratorShell) -> None:
    """Add gauges that read the core when they are scraped."""
    ownership = shell.core.ownership
    owner = metrics.gauge("is_owner", "whether this process conducts the hand-overs")
    owner.set_function(lambda: float(ownership.role is Role.OWNER))
    unsent = metrics.gauge("messages_unsent", "orders and reports that the broker did not take")
    unsent.set_function(lambda: float(shell.messages_unsent))
    for name, (help_text, read) in _FROM_RECORD.items():
        metrics.gauge(name, help_text).set_function(_reader(shell, read))


def _reader(shell: MigratorShell, read: Callable[[HandoverRecord], int]) -> Callable[[], float]:
    def value() -> float:
        record = shell.core.ownership.record
        return 0.0 if record is None else float(read(record))

    return value

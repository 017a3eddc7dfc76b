"""Which models are served and whether a router is there, as heard in reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from libs.contracts.reports import (
    GatewayReport,
    MigratorReport,
    OfflineQueueReport,
    PlannerReport,
    Report,
    RouterReport,
    WorkerReport,
)
from libs.kernel.bounded import RecentMap
from libs.kernel.units import NS_PER_S
from libs.policy.liveness import EchoLiveness, LivenessOptions

ECHOES_MISSED_MAX: Final = 5
ALIASES_REMEMBERED_MAX: Final = 1024
WORKERS_MAX: Final = 4096
OUTAGE_REPORTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that at least one living worker serves."""

    alias: str
    context_tokens_max: int
    first_heard_at_unix_ns: int


class FleetView:
    """Counts a peer as silent after five own reports came back since it was last heard.

    Counting echoes instead of seconds means that a broker that is away silences nobody.
    """

    def __init__(self, *, gateway_id: str, report_interval_ns: int = NS_PER_S) -> None:
        self._gateway_id = gateway_id
        self._liveness = EchoLiveness(
            LivenessOptions(
                echoes_missed_max=ECHOES_MISSED_MAX,
                outage_ns=OUTAGE_REPORTS * report_interval_ns,
                echoes_allowed_after_outage=ECHOES_MISSED_MAX,
            )
        )
        self._workers: RecentMap[str, WorkerReport] = RecentMap(entries_max=WORKERS_MAX)
        self._worker_ids: set[str] = set()
        self._router_ids: set[str] = set()
        self._first_heard: RecentMap[str, int] = RecentMap(entries_max=ALIASES_REMEMBERED_MAX)

    @property
    def has_router(self) -> bool:
        """Whether a living router has been heard."""
        return bool(self._router_ids)

    @property
    def has_heard_workers(self) -> bool:
        """Whether any worker has ever been heard: before that, no model can be said to lack."""
        return len(self._first_heard) > 0

    def is_known(self, alias: str) -> bool:
        """Whether a worker has served this model, even if none does now.

        Capacity comes and goes: such a request goes to a router, which may have it wait.
        """
        return alias in self._first_heard

    def models(self) -> Sequence[ServedModel]:
        """Return the models that living workers serve, by alias."""
        contexts: dict[str, int] = {}
        for worker_id in sorted(self._worker_ids):
            report = self._workers.get(worker_id)
            if report is not None:
                longest = contexts.get(report.alias, 0)
                contexts[report.alias] = max(longest, report.context_tokens_max)
        return [
            ServedModel(
                alias=alias,
                context_tokens_max=contexts[alias],
                first_heard_at_unix_ns=self._first_heard.get(alias) or 0,
            )
            for alias in sorted(contexts)
        ]

    def take(self, report: Report, *, now_ns: int, now_unix_ns: int) -> None:
        """Note a report; the gateway's own counts as its echo."""
        match report:
            case WorkerReport():
                self._liveness.observe_peer(_worker_key(report.worker_id))
                self._workers.put(report.worker_id, report)
                self._worker_ids.add(report.worker_id)
                if report.alias not in self._first_heard:
                    self._first_heard.put(report.alias, now_unix_ns)
            case RouterReport():
                self._liveness.observe_peer(_router_key(report.router_id))
                self._router_ids.add(report.router_id)
            case GatewayReport():
                if report.gateway_id == self._gateway_id:
                    self._liveness.observe_echo(now_ns=now_ns)
                    self._forget_silent()
            case PlannerReport() | MigratorReport() | OfflineQueueReport():
                pass  # they serve no request
            case _:
                assert_never(report)

    def _forget_silent(self) -> None:
        is_alive = self._liveness.is_alive
        for worker_id in sorted(self._worker_ids):
            if not is_alive(_worker_key(worker_id)):
                self._worker_ids.discard(worker_id)
                self._workers.pop(worker_id)
        self._router_ids = {r for r in self._router_ids if is_alive(_router_key(r))}


def _worker_key(worker_id: str) -> str:
    return f"worker.{worker_id}"


def _router_key(router_id: str) -> str:
    return f"router.{router_id}"

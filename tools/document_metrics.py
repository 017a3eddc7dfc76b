"""Writes docs/operators/metrics.md from the services: run `python -m tools.document_metrics`.

A test compares the file with `render()`, and every name in the Grafana dashboard and the alert
rules with `families()`, so that neither can fall behind the code.
"""

from pathlib import Path

from libs.engine.safepoints import SafepointCounters
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from libs.runtime.metrics import FamilyDescription, Metrics
from libs.runtime.notice_socket import NoticeServer
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.options import WorkerOptions
from services.gpu_worker.worker_metrics import worker_metrics
from services.http_gateway.dashboard.cost import CostMeter, Prices
from services.http_gateway.measures import Measures
from services.launcher.model_source import bundled_model
from services.migrator.core import MigratorCore
from services.migrator.migrator_metrics import migrator_metrics
from services.migrator.options import MigratorOptions
from services.offline_queue.core import QueueCore
from services.offline_queue.offline_metrics import offline_metrics
from services.offline_queue.options import QueueOptions
from services.online_router.core import RouterCore
from services.online_router.options import RouterOptions
from services.online_router.router_metrics import router_metrics
from services.planner.config import PlannerConfig
from services.planner.core import PlannerCore
from services.planner.planner_metrics import planner_metrics
from services.planner.read_profile import read_profile
from services.planner.settings import planner_options
from services.preemption_watcher.bus_link import BusLink
from services.preemption_watcher.core import WatcherCore
from services.preemption_watcher.options import SourceOptions, WatcherOptions
from services.preemption_watcher.watcher_metrics import watcher_metrics

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "operators" / "metrics.md"
ALIAS = "tide-tiny"
INTRODUCTION = """# Metrics

Generated from the code by `python -m tools.document_metrics`; do not edit.

Every service shows these at `/metrics` of its metrics port (`<SERVICE>__METRICS_PORT`), the gateway
at `/metrics` of its own. Counters begin at 0 with their process: look at `rate()` or `increase()`.
Where several processes count the same, as routers do, add them up; the gateways' `fleet_...` are
each the whole fleet, so take the largest.

`deploy/prometheus` has a scrape configuration and alert rules, `deploy/grafana` a dashboard.

| well-known name | here |
| --- | --- |
| TTFT, TPOT, end to end | `tideserve_router_{ttft,tpot,e2e}_seconds` |
| queue time | `tideserve_router_queue_seconds` |
| SLO attainment | `tideserve_router_online_requests_within_slo_total` over `..._ended_total` |
| KV usage | `tideserve_worker_kv_usage_ratio` |
| preemptions of nodes | `tideserve_watcher_notices_raised_total` |
| nodes lost without notice | `tideserve_planner_workers_lost_total` |
| migrations of replicas | `tideserve_migrator_handovers_done_total` |
| migrations of sessions | `tideserve_router_sessions_migrated_total` |
| bytes moved | `tideserve_migrator_{kv,weight}_bytes_moved_total` |
| stall | `tideserve_migrator_stall_seconds_recent` |
| recomputed tokens | `tideserve_worker_tokens_recomputed_total` |
| harvested tokens | `tideserve_router_tokens_relayed_total{work="offline"}` |
| cost per hour | `tideserve_http_gateway_fleet_usd_per_hour` |
"""


def services() -> list[tuple[str, Metrics]]:
    """Return every service with all of its metrics, idle."""
    return [
        ("HTTP gateway", _gateway()),
        ("Online router", _router()),
        ("GPU worker", _worker()),
        ("Offline queue", _offline_queue()),
        ("Planner", _planner()),
        ("Migrator", _migrator()),
        ("Preemption watcher", _watcher()),
    ]


def families() -> list[FamilyDescription]:
    """Return every family of every service."""
    return [family for _, metrics in services() for family in metrics.descriptions()]


def render() -> str:
    """Return the document."""
    parts = [INTRODUCTION]
    for title, metrics in services():
        rows = "\n".join(_row(family) for family in metrics.descriptions())
        parts.append(
            f"## {title}\n\n| name | kind | labels | what |\n| --- | --- | --- | --- |\n{rows}\n"
        )
    return "\n".join(parts)


def _row(family: FamilyDescription) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.help_text} |"


def _gateway() -> Metrics:
    measures = Measures()
    measures.show_costs(CostMeter(Prices(spot_usd=0.0, on_demand_usd=0.0)))
    measures.answered(route="/health", status=200)
    return measures.metrics


def _router() -> Metrics:
    core = RouterCore(RouterOptions(router_id="router", aliases=(ALIAS,)))
    return router_metrics(core.state, messages_unsent=_nothing)


def _worker() -> Metrics:
    engine = SchedulerOptions(
        step_tokens_max=64,
        sequences_max=8,
        block_tokens=16,
        blocks_total=64,
        context_tokens_max=128,
        eos_token_ids=frozenset({0}),
    )
    options = WorkerOptions(
        worker_id="worker", alias=ALIAS, process_id=0, vocabulary_size=1000, engine=engine
    )
    core = WorkerCore(options, Scheduler(engine))
    return worker_metrics(
        core,
        messages_dropped=_nothing,
        messages_refused=_nothing,
        safepoints=SafepointCounters(),
    )


def _offline_queue() -> Metrics:
    return offline_metrics(
        QueueCore(QueueOptions(queue_id="queue", process_id=0)),
        tokens_harvested=_nothing,
        messages_unsent=_nothing,
        messages_refused=_nothing,
    )


def _planner() -> Metrics:
    folder = bundled_model().folder
    config = PlannerConfig(model=str(folder))
    profile = read_profile(folder, device=config.device, profile=config.profile)
    options = planner_options(
        config, profile=profile, model=None, planner_id="planner", process_id=0
    )
    return planner_metrics(
        PlannerCore(options),
        plan_ms_recent=_nothing,
        messages_unsent=_nothing,
        messages_refused=_nothing,
    )


def _migrator() -> Metrics:
    core = MigratorCore(MigratorOptions(migrator_id="migrator", alias=ALIAS))
    return migrator_metrics(core, messages_unsent=_nothing)


def _watcher() -> Metrics:
    source = SourceOptions(name="aws", poll_interval_ns=1)
    core = WatcherCore(WatcherOptions(node_id="node-1", sources=(source,)))

    async def no_broker() -> MemoryBus:
        return MemoryBus(MemoryHub())

    socket = NoticeServer(Path("unused"), on_connected=lambda _: None)
    return watcher_metrics(core, BusLink(no_broker), socket)


def _nothing() -> float:
    return 0.0


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")

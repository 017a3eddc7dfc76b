"""`tideserve status`: the fleet as it reports itself right now."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rich.table import Table

from libs.contracts.reports import (
    GatewayReport,
    MigratorReport,
    OfflineQueueReport,
    PlannerReport,
    Report,
    ReportT,
    RouterReport,
    WorkerReport,
)
from libs.kernel.errors import Unavailable
from libs.kernel.units import MIB, NS_PER_S
from services.launcher.connection import connected
from services.launcher.console import RESULTS, show_json, working
from services.launcher.fleet_view import FleetView, listen_once
from services.launcher.options import AsJson, DataFolder, NatsUrl
from services.launcher.state_file import DEFAULT_DATA_FOLDER, find_nats_url


def status(
    nats_url: NatsUrl = None,
    data_folder: DataFolder = DEFAULT_DATA_FOLDER,
    is_json: AsJson = False,
) -> None:
    """Show who is there: replicas, workers and every kind of service, with their load."""
    url = find_nats_url(nats_url, data_folder)
    with working("listening to everybody once"):
        view = asyncio.run(_listen(url))
    if is_json:
        show_json({"nats_url": url, **as_dictionary(view)})
        return
    if not view.process_ids():
        raise Unavailable(f"nobody reports at {url}: no fleet uses it", retry_after_ns=NS_PER_S)
    for table in tables(view):
        if table.row_count:
            RESULTS.print(table)


async def _listen(url: str) -> FleetView:
    async with connected(url, name="tideserve-status") as bus:
        return await listen_once(bus)


def as_dictionary(view: FleetView) -> dict[str, list[dict[str, Any]]]:
    """Return the reports as plain data; cached block hashes are counted, not listed."""
    kinds: dict[str, Sequence[Report]] = {
        "workers": view.workers(),
        "routers": view.routers(),
        "gateways": view.gateways(),
        "planners": view.planners(),
        "offline_queues": view.offline_queues(),
        "migrators": view.migrators(),
    }
    return {name: [_plain(report) for report in reports] for name, reports in kinds.items()}


def _plain(report: Report) -> dict[str, Any]:
    fields = report.model_dump(mode="json", exclude={"type", "prefix_hashes"})
    if isinstance(report, WorkerReport):
        fields["prefix_blocks_reported"] = len(report.prefix_hashes)
    return fields


def tables(view: FleetView) -> list[Table]:
    """Return what a person reads: one table per kind of process; empty where there is none."""
    return [
        replicas_table(view),
        table_of(view.workers(), WORKER_COLUMNS),
        table_of(view.routers(), ROUTER_COLUMNS),
        table_of(view.gateways(), GATEWAY_COLUMNS),
        table_of(view.offline_queues(), OFFLINE_QUEUE_COLUMNS),
        table_of(view.planners(), PLANNER_COLUMNS),
        table_of(view.migrators(), MIGRATOR_COLUMNS),
    ]


def replicas_table(view: FleetView) -> Table:
    """Return the replicas with their shape; empty in a fleet without a planner."""
    table = _table("replica", "shape", "workers", "sessions", "step ms", "state")
    members: dict[str, list[WorkerReport]] = {}
    for report in view.workers():
        if report.position is not None:
            members.setdefault(report.position.replica_id, []).append(report)
    for replica_id in sorted(members):
        workers = members[replica_id]
        position = workers[0].position
        assert position is not None
        serving = [report for report in workers if report.is_serving]
        table.add_row(
            replica_id,
            f"P{position.stages} x M{position.shards}",
            f"{len(workers)} of {position.stages * position.shards}",
            str(sum(report.sessions_running + report.sessions_waiting for report in serving)),
            f"{serving[0].step_ms_recent:.1f}" if serving else "",
            _replica_state(workers),
        )
    return table


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms"


def _share(part: int, *, of: int) -> str:
    return f"{100 * part / of:.1f} %" if of else ""


def _replica_state(workers: list[WorkerReport]) -> str:
    if any(report.position is not None and report.position.is_broken for report in workers):
        return "broken"
    return "serving" if any(report.is_serving for report in workers) else "not serving"


def _worker_state(report: WorkerReport) -> str:
    if report.grace_left_ms is not None:
        return f"ends in {report.grace_left_ms / 1000:.1f} s"
    if report.is_draining:
        return "draining"
    position = report.position
    if position is not None:
        return f"stage {position.stage}, shard {position.shard}"
    return "serving" if report.is_serving else "spare"


def _blocks_used(report: WorkerReport) -> str:
    used = report.blocks_total - report.blocks_free
    return f"{100 * used / max(1, report.blocks_total):.1f} %"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name in ("model", "address", "state") else "right")
    return table


def table_of(reports: Sequence[ReportT], columns: Mapping[str, Callable[[ReportT], str]]) -> Table:
    """Return a row for each report, with what the columns read of it."""
    table = _table(*columns)
    for report in reports:
        table.add_row(*(read(report) for read in columns.values()))
    return table


WORKER_COLUMNS: Final[Mapping[str, Callable[[WorkerReport], str]]] = {
    "worker": lambda r: r.worker_id,
    "model": lambda r: r.alias,
    "running": lambda r: str(r.sessions_running),
    "waiting": lambda r: str(r.sessions_waiting),
    "KV used": _blocks_used,
    "tokens": lambda r: str(r.tokens_generated),
    "step ms": lambda r: f"{r.step_ms_recent:.1f}",
    "state": _worker_state,
}
ROUTER_COLUMNS: Final[Mapping[str, Callable[[RouterReport], str]]] = {
    "router": lambda r: r.router_id,
    "open": lambda r: str(r.sessions_open),
    "waiting": lambda r: str(r.sessions_waiting),
    "accepted": lambda r: str(r.sessions_accepted),
    "resumed": lambda r: str(r.sessions_resumed),
    "tokens": lambda r: str(r.tokens_relayed),
    "offline": lambda r: str(r.tokens_offline),
    "TTFT p99": lambda r: _milliseconds(r.ttft_ms_p99),
    "TPOT p99": lambda r: _milliseconds(r.tpot_ms_p99),
    "in SLO": lambda r: _share(r.online_within_slo, of=r.online_ended),
}
GATEWAY_COLUMNS: Final[Mapping[str, Callable[[GatewayReport], str]]] = {
    "gateway": lambda r: r.gateway_id,
    "address": lambda r: r.http_url,
    "streams open": lambda r: str(r.streams_open),
}
OFFLINE_QUEUE_COLUMNS: Final[Mapping[str, Callable[[OfflineQueueReport], str]]] = {
    "offline queue": lambda r: r.queue_id,
    "batches": lambda r: str(r.batches_open),
    "waiting": lambda r: str(r.lines_waiting),
    "running": lambda r: f"{r.lines_running} of {r.lines_running_max}",
    "completed": lambda r: str(r.lines_completed),
    "failed": lambda r: str(r.lines_failed),
    "expired": lambda r: str(r.lines_expired),
    "tokens": lambda r: str(r.tokens_harvested),
    "to spare": lambda r: "" if r.laxity_s_min is None else f"{r.laxity_s_min:,.0f} s",
}
PLANNER_COLUMNS: Final[Mapping[str, Callable[[PlannerReport], str]]] = {
    "planner": lambda r: r.planner_id,
    "revision": lambda r: str(r.plan_revision),
    "nodes": lambda r: str(r.nodes_live),
    "leaving": lambda r: str(r.nodes_leaving),
    "requests/s": lambda r: f"{r.requests_per_s:.2f}",
    "state": lambda r: r.why_no_plan or ("leads" if r.is_leader else "stands by"),
}
MIGRATOR_COLUMNS: Final[Mapping[str, Callable[[MigratorReport], str]]] = {
    "migrator": lambda r: r.migrator_id,
    "reached": lambda r: str(r.plan_revision_reached),
    "done": lambda r: str(r.handovers_done),
    "weights MiB": lambda r: f"{r.weight_bytes_moved / MIB:.1f}",
    "KV MiB": lambda r: f"{r.kv_bytes_moved / MIB:.1f}",
    "stall ms": lambda r: f"{r.stall_ms_recent:.1f}",
    "state": lambda r: r.state or ("owner" if r.is_owner else "stands by"),
}

"""`tideserve status`: the fleet as it reports itself right now."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from libs.contracts.reports import WorkerReport
from libs.kernel.errors import Unavailable
from libs.kernel.units import MIB, NS_PER_S
from services.launcher.connection import connected
from services.launcher.console import RESULTS, show_json, working
from services.launcher.fleet_view import FleetView, listen_once
from services.launcher.state_file import DEFAULT_DATA_FOLDER, find_nats_url


def status(
    nats_url: Annotated[
        str | None, typer.Option("--nats", help="Broker; else $TIDESERVE_NATS_URL or the fleet's.")
    ] = None,
    data_folder: Annotated[
        Path, typer.Option("--data-dir", help="The fleet's folder.")
    ] = DEFAULT_DATA_FOLDER,
    is_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON.")] = False,
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
    workers = []
    for report in view.workers():
        fields = report.model_dump(mode="json", exclude={"type", "prefix_hashes"})
        workers.append({**fields, "prefix_blocks_reported": len(report.prefix_hashes)})
    return {
        "workers": workers,
        "routers": [r.model_dump(mode="json", exclude={"type"}) for r in view.routers()],
        "gateways": [r.model_dump(mode="json", exclude={"type"}) for r in view.gateways()],
        "planners": [r.model_dump(mode="json", exclude={"type"}) for r in view.planners()],
        "offline_queues": [
            r.model_dump(mode="json", exclude={"type"}) for r in view.offline_queues()
        ],
        "migrators": [r.model_dump(mode="json", exclude={"type"}) for r in view.migrators()],
    }


def tables(view: FleetView) -> list[Table]:
    """Return what a person reads: one table per kind of process."""
    return [
        replicas_table(view),
        workers_table(view),
        routers_table(view),
        gateways_table(view),
        offline_table(view),
        planners_table(view),
        migrators_table(view),
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


def workers_table(view: FleetView) -> Table:
    """Return the workers with their load."""
    table = _table("worker", "model", "running", "waiting", "KV used", "tokens", "step ms", "state")
    for report in view.workers():
        table.add_row(
            report.worker_id,
            report.alias,
            str(report.sessions_running),
            str(report.sessions_waiting),
            _blocks_used(report),
            str(report.tokens_generated),
            f"{report.step_ms_recent:.1f}",
            _worker_state(report),
        )
    return table


def routers_table(view: FleetView) -> Table:
    """Return the routers with what they have carried."""
    table = _table(
        "router",
        "open",
        "waiting",
        "accepted",
        "resumed",
        "tokens",
        "offline",
        "TTFT p99",
        "TPOT p99",
        "in SLO",
    )
    for report in view.routers():
        table.add_row(
            report.router_id,
            str(report.sessions_open),
            str(report.sessions_waiting),
            str(report.sessions_accepted),
            str(report.sessions_resumed),
            str(report.tokens_relayed),
            str(report.tokens_offline),
            _milliseconds(report.ttft_ms_p99),
            _milliseconds(report.tpot_ms_p99),
            _share(report.online_within_slo, of=report.online_ended),
        )
    return table


def offline_table(view: FleetView) -> Table:
    """Return the offline queues with their work; empty where none runs."""
    table = _table(
        "offline queue", "batches", "waiting", "running", "completed", "failed", "expired",
        "tokens", "to spare",
    )  # fmt: skip
    for report in view.offline_queues():
        table.add_row(
            report.queue_id,
            str(report.batches_open),
            str(report.lines_waiting),
            f"{report.lines_running} of {report.lines_running_max}",
            str(report.lines_completed),
            str(report.lines_failed),
            str(report.lines_expired),
            str(report.tokens_harvested),
            "" if report.laxity_s_min is None else f"{report.laxity_s_min:,.0f} s",
        )
    return table


def planners_table(view: FleetView) -> Table:
    """Return the planners; one leads."""
    table = _table("planner", "revision", "nodes", "leaving", "requests/s", "state")
    for report in view.planners():
        table.add_row(
            report.planner_id,
            str(report.plan_revision),
            str(report.nodes_live),
            str(report.nodes_leaving),
            f"{report.requests_per_s:.2f}",
            report.why_no_plan or ("leads" if report.is_leader else "stands by"),
        )
    return table


def migrators_table(view: FleetView) -> Table:
    """Return the migrators with what they moved."""
    table = _table("migrator", "reached", "done", "weights MiB", "KV MiB", "stall ms", "state")
    for report in view.migrators():
        table.add_row(
            report.migrator_id,
            str(report.plan_revision_reached),
            str(report.handovers_done),
            f"{report.weight_bytes_moved / MIB:.1f}",
            f"{report.kv_bytes_moved / MIB:.1f}",
            f"{report.stall_ms_recent:.1f}",
            report.state or ("owner" if report.is_owner else "stands by"),
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


def gateways_table(view: FleetView) -> Table:
    """Return the gateways with their addresses."""
    table = _table("gateway", "address", "streams open")
    for report in view.gateways():
        table.add_row(report.gateway_id, report.http_url, str(report.streams_open))
    return table


def _blocks_used(report: WorkerReport) -> str:
    used = report.blocks_total - report.blocks_free
    return f"{100 * used / max(1, report.blocks_total):.1f} %"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name in ("model", "address", "state") else "right")
    return table

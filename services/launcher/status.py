"""`tideserve status`: the fleet as it reports itself right now."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from libs.contracts.reports import WorkerReport
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from services.launcher.connection import connected
from services.launcher.console import RESULTS, show_json
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
    """Show who is there: workers, routers and gateways, with their load."""
    url = find_nats_url(nats_url, data_folder)
    view = asyncio.run(_listen(url))
    if is_json:
        show_json({"nats_url": url, **as_dictionary(view)})
        return
    if not view.process_ids():
        raise Unavailable(f"nobody reports at {url}", retry_after_ns=NS_PER_S)
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
    }


def tables(view: FleetView) -> list[Table]:
    """Return what a person reads: one table per kind of process."""
    return [workers_table(view), routers_table(view), gateways_table(view)]


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
            "draining" if report.is_draining else "serving",
        )
    return table


def routers_table(view: FleetView) -> Table:
    """Return the routers with what they have carried."""
    table = _table("router", "open", "accepted", "adopted", "resumed", "tokens relayed")
    for report in view.routers():
        table.add_row(
            report.router_id,
            str(report.sessions_open),
            str(report.sessions_accepted),
            str(report.sessions_adopted),
            str(report.sessions_resumed),
            str(report.tokens_relayed),
        )
    return table


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

"""What Tab offers, and the tables of `status` and `top` that show work."""

import io
import os
from pathlib import Path

import pytest
import typer
from rich.console import Console

from libs.contracts.reports import OfflineQueueReport, RouterReport
from services.launcher.completion import entity_ids, node_ids
from services.launcher.fleet_view import FleetView
from services.launcher.main import app
from services.launcher.state_file import FleetState
from services.launcher.status import as_dictionary, tables


@pytest.fixture
def context(tmp_path: Path) -> typer.Context:
    state = FleetState(
        nats_url="nats://127.0.0.1:4223",
        http_url=None,
        alias="tide-tiny",
        launcher_process_id=os.getpid(),
        process_ids={"node-1-w1": 1, "planner-1": 2},
        node_ids=["node-1", "node-2"],
    )
    state.write(tmp_path)
    command = typer.main.get_command(app)
    context = typer.Context(command)
    context.params = {"data_folder": tmp_path}
    return context


def test_nodes_and_processes_of_the_running_fleet_are_offered(context: typer.Context) -> None:
    assert node_ids(context, "") == ["node-1", "node-2"]
    assert node_ids(context, "node-2") == ["node-2"]
    assert entity_ids(context, "node-1") == ["node-1", "node-1-w1"]


def test_without_a_fleet_nothing_is_offered(context: typer.Context, tmp_path: Path) -> None:
    context.params = {"data_folder": tmp_path / "nowhere"}
    assert node_ids(context, "") == entity_ids(context, "") == []


def test_offline_work_and_latencies_are_in_the_tables_and_in_json() -> None:
    view = FleetView()
    view.take(
        OfflineQueueReport(
            queue_id="queue-1",
            beat=0,
            process_id=1,
            batches_open=2,
            lines_waiting=30,
            lines_running=4,
            lines_running_max=8,
            tokens_harvested=12_345,
            laxity_s_min=90.0,
        )
    )
    view.take(
        RouterReport(
            router_id="router-1",
            beat=0,
            journal_id="j",
            process_id=2,
            sessions_open=0,
            sessions_accepted=9,
            tokens_offline=77,
            ttft_ms_p99=321.0,
            online_ended=4,
            online_within_slo=3,
        )
    )
    console = Console(width=200, record=True, file=io.StringIO())
    for table in tables(view):
        console.print(table)
    shown = console.export_text()
    for text in ("queue-1", "4 of 8", "12345", "90 s", "77", "321 ms", "75.0 %"):
        assert text in shown
    assert as_dictionary(view)["offline_queues"][0]["lines_waiting"] == 30

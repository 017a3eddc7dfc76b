"""What `tideserve status` shows of a fleet that waits."""

from rich.console import Console

from libs.contracts.reports import PlannerReport
from libs.runtime.clock import SystemClock
from services.launcher.fleet_view import FleetView
from services.launcher.status import PLANNER_COLUMNS, as_dictionary, table_of

REASON = "tide-tiny does not fit 2 workers of 40 MiB: the best cut needs 12.5 MiB more on each"


def test_the_reason_why_nothing_is_placed_stands_in_the_planners_row() -> None:
    view = FleetView(clock=SystemClock())
    view.take(
        PlannerReport(
            planner_id="planner-1",
            beat=1,
            process_id=1,
            alias="tide-tiny",
            is_leader=True,
            why_no_plan=REASON,
        )
    )
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table_of(view.planners(), PLANNER_COLUMNS))
    assert REASON in shown.get()
    assert as_dictionary(view)["planners"][0]["why_no_plan"] == REASON

"""The view of a fleet: the newest report of each process, and nobody who is silent."""

from libs.contracts.reports import GatewayReport, RouterReport
from libs.kernel.units import NS_PER_S
from services.launcher.fleet_view import ENTRIES_MAX, FleetView


class SetClock:
    """A clock that stands where it is set."""

    def __init__(self) -> None:
        self.at_ns = 0

    def now_ns(self) -> int:
        return self.at_ns

    def now_unix_ns(self) -> int:
        return self.at_ns


def a_router(router_id: str = "router-1", *, beat: int = 0, process_id: int = 7) -> RouterReport:
    return RouterReport(
        router_id=router_id,
        beat=beat,
        journal_id="j",
        process_id=process_id,
        sessions_open=0,
        sessions_accepted=0,
    )


def test_a_newer_report_replaces_the_older() -> None:
    view = FleetView(clock=SetClock())
    view.take(a_router(beat=1))
    view.take(a_router(beat=2))
    assert [report.beat for report in view.routers()] == [2]


def test_a_silent_process_leaves_the_view() -> None:
    clock = SetClock()
    view = FleetView(clock=clock)
    view.take(a_router("router-1", process_id=7))
    clock.at_ns = 2 * NS_PER_S
    view.take(a_router("router-2", process_id=8))
    assert view.process_ids() == {7, 8}
    clock.at_ns = 4 * NS_PER_S
    assert view.process_ids() == {8}


def test_processes_of_different_kinds_may_share_an_id() -> None:
    view = FleetView(clock=SetClock())
    view.take(a_router("a", process_id=1))
    gateway = GatewayReport(gateway_id="a", beat=0, process_id=2, http_url="u", streams_open=0)
    view.take(gateway)
    assert view.process_ids() == {1, 2}
    assert [report.http_url for report in view.gateways()] == ["u"]


def test_past_the_bound_the_process_silent_for_longest_is_forgotten() -> None:
    view = FleetView(clock=SetClock())
    for number in range(ENTRIES_MAX + 1):
        view.take(a_router(f"router-{number}", process_id=number + 1))
    assert len(view.routers()) == ENTRIES_MAX
    assert 1 not in view.process_ids()

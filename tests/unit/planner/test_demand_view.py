"""What is asked of the fleet, by what routers and queues report."""

from libs.contracts.reports import OfflineQueueReport, RouterReport
from libs.kernel.units import NS_PER_S
from services.planner.demand_view import DemandView

WINDOW_NS = 30 * NS_PER_S


def a_view() -> DemandView:
    return DemandView(window_ns=WINDOW_NS, request_tokens=100)


def hear_router(view: DemandView, *, accepted: int, at_s: int) -> None:
    report = RouterReport(
        router_id="router-1",
        beat=0,
        journal_id="router-1-1",
        process_id=1,
        sessions_open=0,
        sessions_accepted=accepted,
    )
    view.router_reported(report, now_ns=at_s * NS_PER_S)


def hear_queue(
    view: DemandView, *, at_s: int, submitted: int = 0, due: float = 0.0, queue: str = "queue-1"
) -> None:
    report = OfflineQueueReport(
        queue_id=queue,
        beat=0,
        process_id=1,
        requests_submitted=submitted,
        tokens_per_s_due=due,
    )
    view.queue_reported(report, now_ns=at_s * NS_PER_S)


def test_offline_requests_are_not_online_arrivals() -> None:
    view = a_view()
    for at_s in (1, 11):
        hear_router(view, accepted=50 * (at_s - 1), at_s=at_s)
        hear_queue(view, submitted=30 * (at_s - 1), at_s=at_s)
    assert view.requests_per_s(now_ns=11 * NS_PER_S) == 20.0


def test_offline_work_that_is_due_counts_as_typical_requests() -> None:
    view = a_view()
    hear_queue(view, due=250.0, at_s=1)
    assert view.requests_per_s(now_ns=2 * NS_PER_S) == 2.5


def test_every_queue_tells_of_all_work_so_that_it_counts_once() -> None:
    view = a_view()
    for queue in ("queue-1", "queue-2"):
        hear_queue(view, due=250.0, at_s=1, queue=queue)
    assert view.requests_per_s(now_ns=2 * NS_PER_S) == 2.5


def test_a_queue_that_fell_silent_asks_for_nothing_any_more() -> None:
    view = a_view()
    hear_queue(view, due=250.0, at_s=1)
    assert view.requests_per_s(now_ns=40 * NS_PER_S) == 0.0

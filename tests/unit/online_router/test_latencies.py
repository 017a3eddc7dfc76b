"""What a router counts of waiting, and against which objective."""

from collections.abc import Callable
from typing import Any

from libs.contracts.online import FinishReason, RejectReason
from libs.contracts.reports import RouterReport
from libs.kernel.core import TimerFired
from libs.kernel.durations import DurationHistogram, RecentDurations
from libs.kernel.units import NS_PER_MS, NS_PER_S
from services.online_router.commands import PublishReport
from services.online_router.latencies import Latencies, Work
from services.online_router.options import Objective

ADesk = Callable[..., Any]
OBJECTIVE = Objective(ttft_ns=200 * NS_PER_MS, tpot_ns=20 * NS_PER_MS)


def pass_ms(desk: Any, milliseconds: int) -> None:
    desk.now_ns += milliseconds * NS_PER_MS


def answered(desk: Any, *, ttft_ms: int, tpot_ms: int, **request: object) -> Latencies:
    """Submit a request and have three tokens of it relayed at this pace."""
    desk.submit(**request)
    desk.tokenize()
    desk.make_claim()
    desk.commit()
    pass_ms(desk, ttft_ms)
    desk.tokens(0)
    desk.commit()
    for index in (1, 2):
        pass_ms(desk, tpot_ms)
        desk.tokens(index, finish_reason=FinishReason.LENGTH if index == 2 else None)
        desk.commit()
    latencies: Latencies = desk.core.state.latencies
    return latencies


def test_each_wait_is_counted_once_where_it_belongs(a_desk: ADesk) -> None:
    desk = a_desk("w1", objective=OBJECTIVE)
    seen = answered(desk, ttft_ms=150, tpot_ms=10).by_work
    online = seen[Work.ONLINE]
    assert (online.ttft.count, online.ttft.sum_ns) == (1, 150 * NS_PER_MS)
    assert (online.tpot.count, online.tpot.sum_ns) == (1, 10 * NS_PER_MS)
    assert (online.e2e.count, online.e2e.sum_ns) == (1, 170 * NS_PER_MS)
    assert (online.queue.count, online.queue.sum_ns) == (1, 0)
    assert online.tokens_relayed == 3
    assert seen[Work.OFFLINE].ttft.count == 0


def test_a_request_within_both_objectives_counts_as_met(a_desk: ADesk) -> None:
    desk = a_desk("w1", objective=OBJECTIVE)
    seen = answered(desk, ttft_ms=200, tpot_ms=20)
    assert (seen.online_ended, seen.online_within_slo) == (1, 1)


def test_a_late_first_token_or_slow_later_ones_miss(a_desk: ADesk) -> None:
    for ttft_ms, tpot_ms in ((201, 1), (1, 21)):
        seen = answered(a_desk("w1", objective=OBJECTIVE), ttft_ms=ttft_ms, tpot_ms=tpot_ms)
        assert (seen.online_ended, seen.online_within_slo) == (1, 0)


def test_offline_work_has_no_objective_and_its_tokens_are_told_apart(a_desk: ADesk) -> None:
    desk = a_desk("w1", objective=OBJECTIVE)
    seen = answered(desk, ttft_ms=900, tpot_ms=90, priority=-10)
    assert (seen.online_ended, seen.online_within_slo) == (0, 0)
    assert seen.by_work[Work.OFFLINE].ttft.count == 1
    report = newest_report(desk)
    assert (report.tokens_relayed, report.tokens_offline) == (3, 3)
    assert report.ttft_ms_p99 is None


def test_the_report_tells_the_last_minutes_quantiles_and_the_objective(a_desk: ADesk) -> None:
    desk = a_desk("w1", objective=OBJECTIVE)
    answered(desk, ttft_ms=150, tpot_ms=10)
    report = newest_report(desk)
    assert (report.ttft_ms_p50, report.ttft_ms_p99) == (150.0, 150.0)
    assert (report.tpot_ms_p99, report.tpot_slo_ms) == (10.0, 20.0)
    pass_ms(desk, 61_000)
    assert newest_report(desk).ttft_ms_p99 is None


def test_refusals_are_counted_by_their_reason(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.submit(alias="unknown")
    counters = desk.core.state.counters
    assert counters.rejected_by_reason[RejectReason.MODEL_NOT_FOUND] == 1
    assert sum(counters.rejected_by_reason.values()) == counters.rejected == 1


def newest_report(desk: Any) -> RouterReport:
    desk.tell(TimerFired(key="report", cause_id="t"))
    report: RouterReport = desk.only(PublishReport).report
    return report


def test_a_duration_on_a_bound_belongs_below_it() -> None:
    tally = DurationHistogram((10, 20))
    for duration_ns in (1, 10, 11, 20, 21):
        tally.observe(duration_ns)
    assert tally.cumulative() == [2, 4, 5]
    assert (tally.sum_ns, tally.count) == (63, 5)


def test_a_quantile_is_a_value_that_was_there_and_the_old_ones_fall_out() -> None:
    recent = RecentDurations(window_ns=NS_PER_S, entries_max=100)
    assert recent.quantiles_ns(0.5, now_ns=0) == [None]
    for number in range(1, 101):
        recent.observe(number, now_ns=number)
    assert recent.quantiles_ns(0.0, 0.5, 0.99, 1.0, now_ns=100) == [1, 50, 99, 100]
    assert recent.quantiles_ns(0.5, now_ns=NS_PER_S + 99) == [99]
    for number in range(250):
        recent.observe(1000 + number, now_ns=2 * NS_PER_S)  # past the bound: the last 100 stay
    assert recent.quantiles_ns(0.0, 1.0, now_ns=2 * NS_PER_S) == [1150, 1249]
    recent.observe(7, now_ns=3 * NS_PER_S)
    assert recent.quantiles_ns(0.0, now_ns=3 * NS_PER_S) == [7]

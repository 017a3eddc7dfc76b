"""The rate of arrivals from counters that may be lost, doubled or begin anew."""

from libs.kernel.units import NS_PER_S
from libs.policy.arrival_rate import ArrivalRate


def observed(*readings: tuple[float, str, int]) -> ArrivalRate:
    rate = ArrivalRate(window_ns=30 * NS_PER_S)
    for at_s, source_id, count in readings:
        rate.observe(source_id, count=count, now_ns=round(at_s * NS_PER_S))
    return rate


def test_a_steady_source_has_its_rate_before_and_after_the_window_is_full() -> None:
    rate = observed(*((s, "r", 2 * s) for s in range(11)))
    assert rate.per_s(now_ns=10 * NS_PER_S) == 2.0
    rate = observed(*((s, "r", 2 * s) for s in range(101)))
    assert rate.per_s(now_ns=100 * NS_PER_S) == 2.0


def test_a_lost_report_changes_nothing() -> None:
    assert observed((0, "r", 0), (10, "r", 30)).per_s(now_ns=10 * NS_PER_S) == 3.0


def test_routers_add_up() -> None:
    rate = observed((0, "a", 0), (0, "b", 100), (10, "a", 10), (10, "b", 120))
    assert rate.per_s(now_ns=10 * NS_PER_S) == 3.0


def test_what_was_counted_before_the_first_report_is_not_an_arrival_now() -> None:
    assert observed((5, "r", 1_000)).per_s(now_ns=5 * NS_PER_S) == 0.0


def test_a_silent_source_fades_out_with_the_window() -> None:
    rate = observed((0, "r", 0), (10, "r", 30))
    assert rate.per_s(now_ns=20 * NS_PER_S) == 1.5
    assert rate.per_s(now_ns=41 * NS_PER_S) == 0.0


def test_a_report_that_comes_late_or_doubled_is_harmless() -> None:
    rate = observed((0, "r", 0), (10, "r", 30), (10, "r", 30), (11, "r", 20))
    assert rate.per_s(now_ns=10 * NS_PER_S) == 3.0

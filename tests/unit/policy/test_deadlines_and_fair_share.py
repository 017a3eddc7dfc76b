"""What offline work has to hurry, and who of its tenants goes next."""

from hypothesis import given
from hypothesis import strategies as st

from libs.kernel.units import NS_PER_S
from libs.policy.deadlines import DueWork, laxity_ns, least_laxity_ns, priority_at
from libs.policy.fair_share import ServiceCounters, cost

SLACK_NS = 600 * NS_PER_S
IDLE = -10


def test_laxity_is_what_is_left_when_the_work_is_done() -> None:
    laxity = laxity_ns(now_ns=0, deadline_at_ns=100 * NS_PER_S, tokens=500, tokens_per_s=10.0)
    assert laxity == 50 * NS_PER_S


def test_without_a_rate_only_the_time_left_counts() -> None:
    assert laxity_ns(now_ns=7, deadline_at_ns=10, tokens=1_000_000, tokens_per_s=0.0) == 3


def test_work_with_earlier_deadlines_takes_its_time_from_what_comes_after() -> None:
    work = [
        DueWork(tokens=600, due_at_ns=100 * NS_PER_S),
        DueWork(tokens=300, due_at_ns=50 * NS_PER_S),
    ]
    least = least_laxity_ns(work, now_ns=0, tokens_per_s=10.0)
    assert least == 10 * NS_PER_S, "alone they would have 20 and 40 s to spare"
    assert least_laxity_ns([], now_ns=0, tokens_per_s=1.0) is None


def test_priority_rises_in_steps_as_time_runs_out() -> None:
    seen = [
        priority_at(SLACK_NS * tenths // 10, slack_ns=SLACK_NS, priority_idle=IDLE)
        for tenths in range(12, -2, -1)
    ]
    assert seen == sorted(seen)
    assert [priority for priority in dict.fromkeys(seen)] == [-10, -7, -4, -1, 0]


@given(st.integers(-(10**15), 10**15), st.integers(-(10**15), 10**15))
def test_less_time_to_spare_never_means_less_priority(first: int, second: int) -> None:
    less, more = sorted((first, second))
    urgent = priority_at(less, slack_ns=SLACK_NS, priority_idle=IDLE)
    assert urgent >= priority_at(more, slack_ns=SLACK_NS, priority_idle=IDLE)


def test_the_tenant_that_was_served_least_goes_next() -> None:
    counters = ServiceCounters()
    counters.set_active(["a", "b"])
    counters.charge("a", cost(prompt_tokens=10, answer_tokens=5))
    assert min("a", "b", key=counters.served) == "b"
    counters.charge("b", 21)
    assert min("a", "b", key=counters.served) == "a"


def test_a_tenant_that_comes_back_has_saved_nothing_up() -> None:
    counters = ServiceCounters()
    counters.set_active(["a", "b"])
    counters.charge("a", 1000)
    counters.set_active(["a"])
    counters.set_active(["a", "b"])
    assert counters.served("b") == 1000


@given(st.lists(st.integers(1, 100), min_size=20, max_size=200))
def test_two_busy_tenants_are_never_further_apart_than_one_request(costs: list[int]) -> None:
    counters = ServiceCounters()
    counters.set_active(["a", "b"])
    for tokens in costs:
        counters.charge(min("a", "b", key=counters.served), tokens)
        assert abs(counters.served("a") - counters.served("b")) <= 100

"""What is asked for, and which nodes it takes."""

from hypothesis import given
from hypothesis import strategies as st

from libs.kernel.units import NS_PER_S
from libs.policy.capacity import CapacityMix, OwnedNode, ZoneBoard, mix, nodes_to_release
from libs.policy.demand import (
    Demand,
    OfflineWork,
    offline_tokens_per_s,
)


def due(tokens: int, seconds: int | None) -> OfflineWork:
    return OfflineWork(tokens=tokens, due_after_ns=None if seconds is None else seconds * NS_PER_S)


def test_the_tightest_deadline_sets_the_rate_of_offline_work() -> None:
    assert offline_tokens_per_s([due(1_000, 100), due(1_000, 1_000)]) == 10
    assert offline_tokens_per_s([due(100, 100), due(4_900, 1_000)]) == 5


def test_work_without_a_deadline_asks_for_nothing() -> None:
    assert offline_tokens_per_s([due(10**9, None)]) == 0


def test_overdue_work_is_asked_for_within_a_second() -> None:
    assert offline_tokens_per_s([due(500, -10)]) == 500


@given(st.lists(st.tuples(st.integers(1, 1_000), st.integers(1, 100)), min_size=1, max_size=6))
def test_at_that_rate_nothing_misses_its_deadline_and_at_less_something_does(
    rows: list[tuple[int, int]],
) -> None:
    work = [due(tokens, seconds) for tokens, seconds in rows]
    rate = offline_tokens_per_s(work)
    done_by = {s: sum(t for t, other in rows if other <= s) for _, s in rows}
    assert all(tokens <= rate * seconds * (1 + 1e-9) for seconds, tokens in done_by.items())
    assert any(tokens > rate * seconds * 0.999 for seconds, tokens in done_by.items())


def test_both_kinds_of_demand_become_one_rate_of_requests() -> None:
    demand = Demand(online_requests_per_s=2.0, offline=(due(1_280, 10),))
    assert demand.requests_per_s(output_tokens=128) == 3.0


def test_on_demand_fills_in_exactly_what_spot_does_not_bring() -> None:
    assert mix(nodes_needed=4, nodes_extra=1, spot_ready=5) == CapacityMix(
        spot_nodes=5, on_demand_nodes=0
    )
    assert mix(nodes_needed=4, nodes_extra=1, spot_ready=4).on_demand_nodes == 0
    assert mix(nodes_needed=4, nodes_extra=1, spot_ready=3).on_demand_nodes == 1
    assert mix(nodes_needed=4, nodes_extra=2, spot_ready=0).on_demand_nodes == 4


@given(st.integers(0, 50), st.integers(0, 5), st.integers(0, 60))
def test_spot_and_on_demand_together_are_never_fewer_than_needed(
    needed: int, extra: int, ready: int
) -> None:
    wanted = mix(nodes_needed=needed, nodes_extra=extra, spot_ready=ready)
    assert wanted.on_demand_nodes + min(ready, wanted.spot_nodes) >= needed
    assert wanted.on_demand_nodes <= needed


def test_a_zone_that_preempts_is_shunned_while_two_others_are_good() -> None:
    board = ZoneBoard().seen("a").seen("b").seen("c").preempted("b")
    assert board == ZoneBoard(good=("a", "c"), shunned=("b",))
    assert board.seen("b") == board
    assert board.launched("b") == ZoneBoard(good=("a", "b", "c"))


def test_with_fewer_than_two_good_zones_all_are_tried_again() -> None:
    board = ZoneBoard(good=("a", "b")).preempted("a")
    assert board == ZoneBoard(good=("a", "b"))


def test_the_least_used_of_the_good_zones_comes_first_then_the_cheapest() -> None:
    board = ZoneBoard(good=("a", "b", "c"), shunned=("d",))
    prices = {"b": 2.0, "c": 1.0}
    assert board.preferred(nodes={"a": 2, "d": 0}, usd_per_hour=prices) == ("c", "b", "a")


def test_on_demand_nodes_and_idle_ones_are_released_first() -> None:
    nodes = [
        OwnedNode(node_id="spot-a", is_spot=True, is_placed=True),
        OwnedNode(node_id="spot-b", is_spot=True, is_placed=False),
        OwnedNode(node_id="dear", is_spot=False, is_placed=True),
    ]
    enough = CapacityMix(spot_nodes=2, on_demand_nodes=0)
    assert nodes_to_release(nodes, enough) == ("dear",)
    less = CapacityMix(spot_nodes=1, on_demand_nodes=0)
    assert nodes_to_release(nodes, less) == ("dear", "spot-b")
    assert nodes_to_release(nodes, CapacityMix(spot_nodes=5, on_demand_nodes=1)) == ()

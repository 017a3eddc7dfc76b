"""Nodes come and go as a trace says, and no change is impossible."""

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from loadgen.traces.availability import AvailabilityTrace, NodeChange, NodeLife, from_counts
from loadgen.traces.scenarios import SCENARIOS, scenario


def at(seconds: int, *, added: str = "", removed: str = "") -> NodeChange:
    return NodeChange(
        at_ns=seconds * NS_PER_S, added=tuple(added.split()), removed=tuple(removed.split())
    )


def a_trace(*changes: NodeChange, end_s: int = 100) -> AvailabilityTrace:
    return AvailabilityTrace(
        name="t", source="made by hand", changes=changes, end_at_ns=end_s * NS_PER_S
    )


TRACE = a_trace(at(0, added="a b"), at(10, added="c", removed="a"), at(50, removed="b"))


def in_seconds(trace: AvailabilityTrace) -> list[tuple[int, int]]:
    return [(at_ns // NS_PER_S, nodes) for at_ns, nodes in trace.counts()]


def test_counts_and_nodes_follow_the_changes() -> None:
    assert in_seconds(TRACE) == [(0, 2), (50, 1)]
    assert TRACE.nodes_at(9 * NS_PER_S) == ("a", "b")
    assert TRACE.nodes_at(10 * NS_PER_S) == ("b", "c")
    assert TRACE.node_ns() == (10 + 50 + 90) * NS_PER_S


def test_lives_say_when_each_node_came_and_went() -> None:
    assert TRACE.lives() == (
        NodeLife(node="a", added_at_ns=0, removed_at_ns=10 * NS_PER_S),
        NodeLife(node="b", added_at_ns=0, removed_at_ns=50 * NS_PER_S),
        NodeLife(node="c", added_at_ns=10 * NS_PER_S),
    )


def test_a_window_begins_with_the_nodes_that_were_there() -> None:
    window = TRACE.window(start_ns=10 * NS_PER_S, end_ns=60 * NS_PER_S)
    assert window.changes == (at(0, added="b c"), at(40, removed="b"))
    assert window.end_at_ns == 50 * NS_PER_S


def test_a_delayed_addition_of_a_node_that_was_gone_by_then_never_happens() -> None:
    trace = a_trace(at(0, added="a"), at(10, added="b c"), at(20, removed="b"), at(99, added="d"))
    assert trace.added_later(delay_ns=15 * NS_PER_S).changes == (
        at(0, added="a"),
        at(25, added="c"),
    )


@pytest.mark.parametrize(
    "changes",
    [
        (at(0, added="a"), at(0, added="b")),
        (at(5, added="a"), at(4, added="b")),
        (at(0, added="a"), at(1, added="a")),
        (at(0, removed="a"),),
        (at(101, added="a"),),
    ],
)
def test_an_impossible_trace_cannot_be_made(changes: tuple[NodeChange, ...]) -> None:
    with pytest.raises(ConfigError):
        a_trace(*changes)


def test_counts_become_nodes_of_which_none_returns() -> None:
    counts = [(second * NS_PER_S, nodes) for second, nodes in enumerate([5, 2, 2, 6, 0, 3])]
    trace = from_counts(
        counts, name="t", source="s", end_at_ns=10 * NS_PER_S, rng=Rng(1).child("gone")
    )
    assert in_seconds(trace) == [(0, 5), (1, 2), (3, 6), (4, 0), (5, 3)]
    names = [life.node for life in trace.lives()]
    assert len(names) == len(set(names)) == 12


PUBLISHED_STEPS = {
    "A_S": {0: 7, 240: 8, 360: 10, 600: 9, 900: 10, 1200: 8},
    "B_S": {0: 10, 120: 8, 240: 7, 720: 8, 960: 9},
    "A_S+O": {0: 7, 120: 10, 600: 9, 690: 10, 1200: 8, 1290: 10},
    "B_S+O": {0: 10, 120: 8, 210: 10, 240: 9, 330: 10},
    "A'_S+O": {0: 7, 120: 10, 360: 12, 600: 10},
    "B'_S+O": {0: 10, 120: 8, 210: 10, 240: 9, 330: 10, 450: 12, 600: 10},
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_has_its_published_steps(name: str) -> None:
    trace = scenario(name)
    assert dict(in_seconds(trace)) == PUBLISHED_STEPS[name]
    assert trace.end_at_ns == SCENARIOS[name].end_at_s * NS_PER_S


def test_an_unknown_scenario_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"A_S, B_S, A_S\+O, B_S\+O"):
        scenario("C_S")

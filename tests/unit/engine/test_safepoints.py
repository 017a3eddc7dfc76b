"""Safepoints by themselves: no model, a clock that the test moves."""

from itertools import count

import pytest
import torch

from libs.engine.safepoints import Safepoints, StepYield
from libs.engine.steps import PlanEntry, StepPlan

LAYERS = 12


def a_plan(step_id: int, *, layers_between: int | None = 4) -> StepPlan:
    entry = PlanEntry(
        sequence_id="s",
        token_ids=(1,),
        start_position=0,
        block_table=(0,),
        is_sampling=True,
        output_index=0,
    )
    return StepPlan(
        step_id=step_id,
        entries=(entry,),
        opened=(),
        closed=(),
        layers_between_safepoints=layers_between,
    )


class Engine:
    """Passes the safepoints of a step as a decoder does; the clock ticks at each look at it."""

    def __init__(self) -> None:
        ticks = count(1)
        self.safepoints = Safepoints(torch.device("cpu"), now_ns=lambda: next(ticks))
        self.yields: list[StepYield] = []
        self.safepoints.on_yield = self.yields.append

    def run(self, plan: StepPlan, *, request_at: dict[int, int] | None = None) -> int:
        """Return the layers computed; `request_at` gives the step to be asked to yield while a
        layer is computed."""
        with self.safepoints.of_step(plan):
            for layer in range(LAYERS):
                if self.safepoints.is_before(layer) and self.safepoints.must_stop(layer=layer):
                    return layer
                if request_at and layer in request_at:
                    self.safepoints.request(request_at[layer])
        return LAYERS


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.mark.parametrize(
    ("asked_in_layer", "stopped_before"), [(0, 4), (3, 4), (4, 8), (7, 8), (8, 12), (11, 12)]
)
def test_a_step_stops_at_the_first_safepoint_behind_its_signal(
    engine: Engine, asked_in_layer: int, stopped_before: int
) -> None:
    assert engine.run(a_plan(7), request_at={asked_in_layer: 7}) == stopped_before


def test_a_signal_that_comes_before_its_step_stops_it_at_the_first_safepoint(
    engine: Engine,
) -> None:
    engine.safepoints.request(7)
    assert engine.run(a_plan(7)) == 4


@pytest.mark.parametrize("asked_in_layer", range(LAYERS))
def test_a_signal_never_stops_another_step_than_its_own(
    engine: Engine, asked_in_layer: int
) -> None:
    engine.run(a_plan(7), request_at={asked_in_layer: 7})
    assert engine.run(a_plan(8)) == LAYERS
    assert engine.run(a_plan(9), request_at={asked_in_layer: 7}) == LAYERS


def test_a_step_without_safepoints_runs_to_its_end(engine: Engine) -> None:
    assert engine.run(a_plan(7, layers_between=None), request_at={0: 7}) == LAYERS
    assert engine.safepoints.counters.checks == 0


def test_who_votes_stops_exactly_if_the_vote_says_so(engine: Engine) -> None:
    wishes = []

    def vote(wish: bool, *, outcome: bool) -> bool:
        wishes.append(wish)
        return outcome

    with engine.safepoints.of_step(a_plan(7)):
        engine.safepoints.request(7)
        assert not engine.safepoints.must_stop(layer=4, vote=lambda wish: vote(wish, outcome=False))
    with engine.safepoints.of_step(a_plan(8)):
        assert engine.safepoints.must_stop(layer=4, vote=lambda wish: vote(wish, outcome=True))
    assert wishes == [True, False]
    assert [(each.step_id, each.requested_at_ns) for each in engine.yields] == [(8, None)]


def test_each_yield_says_when_it_was_asked_for_and_when_it_was_not_yet(engine: Engine) -> None:
    engine.run(a_plan(7), request_at={5: 7})
    (event,) = engine.yields
    assert (event.step_id, event.layer) == (7, 8)
    assert event.checked_at_ns is not None
    assert event.requested_at_ns is not None
    assert event.checked_at_ns < event.requested_at_ns < event.stopped_at_ns


def test_counters_tell_what_safepoints_cost_and_what_was_computed_for_nothing(
    engine: Engine,
) -> None:
    engine.run(a_plan(7), request_at={5: 7})
    engine.run(a_plan(8))
    counters = engine.safepoints.counters
    assert (counters.steps, counters.checks, counters.yields) == (2, 4, 1)
    (event,) = engine.yields
    assert event.requested_at_ns is not None
    assert counters.stop_ns == counters.stop_ns_max == event.stopped_at_ns - event.requested_at_ns
    assert 0 < counters.check_ns < counters.step_ns


def test_asking_again_does_not_move_the_time_of_the_signal(engine: Engine) -> None:
    engine.safepoints.request(7)
    engine.safepoints.request(7)
    engine.run(a_plan(7))
    assert engine.yields[0].requested_at_ns == 1

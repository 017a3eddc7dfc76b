"""The table of states, and the picture of it that people read."""

import re

import pytest

from libs.contracts.handover_record import HandoverState
from libs.contracts.placement import Policy
from services.migrator import transitions
from services.migrator.transitions import (
    ENDS,
    ROUTES,
    TRANSITIONS,
    UNDOABLE,
    Turn,
    can_turn,
    state_after,
)


@pytest.mark.parametrize("policy", list(Policy))
def test_the_picture_shows_the_route(policy: Policy) -> None:
    picture = re.sub(r"\s+", " ", transitions.__doc__ or "")
    route = " > ".join(ROUTES[policy])
    assert f" {policy} {route}" in picture


@pytest.mark.parametrize("policy", list(Policy))
def test_every_state_that_can_be_entered_can_be_left_unless_it_is_an_end(policy: Policy) -> None:
    table = TRANSITIONS[policy]
    entered = {after for turns in table.values() for after in turns.values()}
    assert entered - set(table) == ENDS


@pytest.mark.parametrize("policy", list(Policy))
def test_past_the_point_of_no_return_nothing_is_given_up(policy: Policy) -> None:
    for state in (HandoverState.ACTIVATING, HandoverState.RELEASING, HandoverState.DROPPING):
        assert not can_turn(policy, state, Turn.GIVE_UP)
    for state in UNDOABLE & set(TRANSITIONS[policy]):
        assert state_after(policy, state, Turn.GIVE_UP) is HandoverState.ABANDONING


def test_only_a_hand_over_that_copies_beforehand_can_hurry() -> None:
    hurried = {
        (policy, state)
        for policy in Policy
        for state in HandoverState
        if can_turn(policy, state, Turn.HURRY)
    }
    assert hurried == {(Policy.TIDESERVE, HandoverState.LOADING)}


@pytest.mark.parametrize("policy", [Policy.SPOTSERVE, Policy.TIDESERVE])
def test_sources_stop_before_targets_serve_and_go_after_they_are_released(policy: Policy) -> None:
    route = ROUTES[policy]
    order = [
        route.index(state)
        for state in (
            HandoverState.STOPPING,
            HandoverState.ACTIVATING,
            HandoverState.RELEASING,
            HandoverState.DROPPING,
        )
    ]
    assert order == sorted(order)

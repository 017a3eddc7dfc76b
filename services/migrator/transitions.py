"""The life of a hand-over, one route per policy.

    tideserve      staging > forming > loading > copying > stopping > activating
                   > releasing > dropping > done
    spotserve      staging > forming > waiting > stopping > loading > activating
                   > releasing > dropping > done
    reparallelize  stopping > releasing > dropping > staging > forming > loading
                   > activating > done
    reroute        stopping > releasing > dropping > staging > forming > loading
                   > activating > done

The group is formed as soon as there is room: it settles how many KV blocks each rank has, so that
what is copied from then on stays; and sources that stand still do not wait for it.

A replica that the placement wants and that only stands still goes resuming > done.

States in which nothing is to be done are passed over. Two turns leave the route:

    give up        from every state that can still be undone > abandoning > abandoned
    hurry          loading > stopping, from there as spotserve: a source will end before its
                   targets could be ready, so that its KV has to go first

A state that cannot be undone is entered only when all that follows needs nobody's consent.
"""

from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from typing import Final

from libs.contracts.handover_record import HandoverState as S
from libs.contracts.placement import Policy


class Turn(StrEnum):
    """Why a hand-over leaves its state."""

    CARRIED_OUT = "carried_out"
    GIVE_UP = "give_up"
    HURRY = "hurry"


_RESTART = (
    S.STOPPING,
    S.RELEASING,
    S.DROPPING,
    S.STAGING,
    S.FORMING,
    S.LOADING,
    S.ACTIVATING,
    S.DONE,
)
ROUTES: Final[Mapping[Policy, tuple[S, ...]]] = {
    Policy.TIDESERVE: (
        S.STAGING,
        S.FORMING,
        S.LOADING,
        S.COPYING,
        S.STOPPING,
        S.ACTIVATING,
        S.RELEASING,
        S.DROPPING,
        S.DONE,
    ),
    Policy.SPOTSERVE: (
        S.STAGING,
        S.FORMING,
        S.WAITING,
        S.STOPPING,
        S.LOADING,
        S.ACTIVATING,
        S.RELEASING,
        S.DROPPING,
        S.DONE,
    ),
    Policy.REPARALLELIZE: _RESTART,
    Policy.REROUTE: _RESTART,
}
UNDOABLE: Final = frozenset({S.STAGING, S.LOADING, S.FORMING, S.COPYING, S.WAITING, S.STOPPING})
"""Before the point of no return."""
ENDS: Final = frozenset({S.DONE, S.ABANDONED})


def _transitions(policy: Policy) -> dict[S, dict[Turn, S]]:
    route = ROUTES[policy]
    table: dict[S, dict[Turn, S]] = {
        S.RESUMING: {Turn.CARRIED_OUT: S.DONE},
        S.ABANDONING: {Turn.CARRIED_OUT: S.ABANDONED},
    }
    for state, after in pairwise(route):
        table[state] = {Turn.CARRIED_OUT: after}
        if state in UNDOABLE:
            table[state][Turn.GIVE_UP] = S.ABANDONING
        if policy is Policy.TIDESERVE and state is S.LOADING:
            table[state][Turn.HURRY] = S.STOPPING
    return table


TRANSITIONS: Final[Mapping[Policy, Mapping[S, Mapping[Turn, S]]]] = {
    policy: _transitions(policy) for policy in Policy
}
"""By policy, state and turn; what is not listed cannot happen."""


def is_from_disk(policy: Policy) -> bool:
    """Whether the policy restarts what it changes: nothing is copied, weights come from disk."""
    return ROUTES[policy] is _RESTART


def can_turn(policy: Policy, state: S, turn: Turn) -> bool:
    """Whether a hand-over in this state may take this turn."""
    return turn in TRANSITIONS[policy].get(state, {})


def state_after(policy: Policy, state: S, turn: Turn) -> S:
    """Return the state that follows. A turn that is not listed is an error of ours."""
    return TRANSITIONS[policy][state][turn]


def first_state(policy: Policy) -> S:
    """Return where the route begins."""
    return ROUTES[policy][0]

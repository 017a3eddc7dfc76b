"""Just-in-time stops against the definition in the paper, by trying every step."""

from hypothesis import given
from hypothesis import strategies as st

from libs.kernel.units import NS_PER_S
from libs.policy.arrangement import (
    AfterStop,
    Pace,
    arrange_for_loss,
    arrange_for_newcomer,
    migration_ns,
)

PACES = st.builds(
    Pace,
    prefill_left_ns=st.integers(0, 50),
    step_ns=st.integers(1, 20),
    steps_left=st.integers(0, 30),
    computed_ns=st.integers(0, 100),
)


def execution_ns(pace: Pace, steps: int) -> int:
    return pace.prefill_left_ns + steps * pace.step_ns


@given(PACES, st.integers(0, 500), st.integers(0, 500))
def test_before_a_loss_the_most_steps_are_run_after_which_the_move_still_fits(
    pace: Pace, grace_ns: int, move_ns: int
) -> None:
    fitting = [
        steps
        for steps in range(pace.steps_left + 1)
        if execution_ns(pace, steps) < grace_ns - move_ns
    ]
    arranged = arrange_for_loss(pace, grace_ns=grace_ns, migration_ns=move_ns)
    assert arranged.steps == max(fitting, default=0)
    if fitting:
        assert arranged.stop_after_ns + move_ns < grace_ns
    else:
        assert arranged.stop_after_ns == 0


@given(PACES, st.integers(0, 500), st.integers(0, 500))
def test_for_a_newcomer_the_fewest_steps_are_run_that_reach_its_readiness(
    pace: Pace, ready_ns: int, move_ns: int
) -> None:
    reaching = [
        steps for steps in range(pace.steps_left + 1) if execution_ns(pace, steps) >= ready_ns
    ]
    arranged = arrange_for_newcomer(pace, ready_after_ns=ready_ns, migration_ns=move_ns)
    assert arranged.steps == min(reaching, default=pace.steps_left)


def test_what_ends_before_the_stop_is_not_moved() -> None:
    pace = Pace(prefill_left_ns=0, step_ns=10, steps_left=3)
    arranged = arrange_for_loss(pace, grace_ns=1_000, migration_ns=100)
    assert arranged.after is AfterStop.FINISHED
    assert arranged.stop_after_ns == 30


def test_a_move_that_takes_longer_than_computing_again_is_not_made() -> None:
    young = Pace(prefill_left_ns=0, step_ns=10, steps_left=100, computed_ns=50)
    assert arrange_for_loss(young, grace_ns=220, migration_ns=200).after is AfterStop.RECOMPUTE
    old = Pace(prefill_left_ns=0, step_ns=10, steps_left=100, computed_ns=500)
    assert arrange_for_loss(old, grace_ns=220, migration_ns=200).after is AfterStop.MOVE


def test_the_busiest_link_and_the_set_up_make_the_time_of_a_move() -> None:
    taken_ns = migration_ns(bytes_moved_max=10**9, link_bytes_per_s=5 * 10**8, setup_ns=7)
    assert taken_ns == 2 * NS_PER_S + 7

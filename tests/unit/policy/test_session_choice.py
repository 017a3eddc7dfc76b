"""Copy, replay or finish: each where it is the best, and never past the deadline."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.session_choice import (
    LeavingRates,
    LeavingSession,
    SessionChoice,
    choose_for_sessions,
)

RATES = LeavingRates(
    step_ns=20 * NS_PER_MS,
    link_bytes_per_s=10**9,
    prefill_tokens_per_s=10_000,
    finish_within_ns=2 * NS_PER_S,
    copy_within_ns=2 * NS_PER_S,
)


def a_session(
    name: str = "s", *, tokens: int = 1_000, left: int = 10_000, mb: int = 10, online: bool = True
) -> LeavingSession:
    return LeavingSession(
        session_id=name,
        tokens=tokens,
        tokens_left_max=left,
        bytes_uncopied=mb * 10**6,
        is_online=online,
    )


def choice(session: LeavingSession, rates: LeavingRates = RATES) -> SessionChoice:
    return choose_for_sessions([session], rates)[session.session_id]


def test_a_session_that_ends_in_time_stays() -> None:
    assert choice(a_session(left=99)) is SessionChoice.FINISH
    assert choice(a_session(left=100)) is SessionChoice.COPY


def test_a_prompt_that_must_be_computed_first_counts_as_time_until_the_end() -> None:
    waiting = replace(a_session(left=99), prompt_tokens_left=200)
    assert choice(waiting) is SessionChoice.COPY


def test_nobody_stays_where_nobody_may() -> None:
    assert choice(a_session(left=0), replace(RATES, finish_within_ns=0)) is SessionChoice.COPY


def test_a_node_that_stays_sets_no_deadline_to_copies() -> None:
    session = a_session(tokens=90_000, mb=5_000)
    assert choice(session) is SessionChoice.REPLAY
    assert choice(session, replace(RATES, copy_within_ns=None)) is SessionChoice.COPY


def test_a_short_session_replays_and_a_long_one_is_copied() -> None:
    # 100 ms of prefill against 10 ms, then 200 ms, of copying.
    assert choice(a_session(mb=10)) is SessionChoice.COPY
    assert choice(a_session(mb=200)) is SessionChoice.REPLAY


def test_without_a_link_everything_replays() -> None:
    rates = replace(RATES, link_bytes_per_s=0)
    assert choice(a_session(), rates) is SessionChoice.REPLAY


def test_what_does_not_fit_the_grace_period_replays_least_saved_first() -> None:
    sessions = [a_session(f"s{n}", tokens=20_000 + n, mb=900) for n in range(3)]
    choices = choose_for_sessions(sessions, RATES)
    assert choices == {
        "s0": SessionChoice.REPLAY,
        "s1": SessionChoice.COPY,
        "s2": SessionChoice.COPY,
    }


def test_online_sessions_leave_before_offline_ones() -> None:
    offline = a_session("a", tokens=90_000, mb=1_500, online=False)
    online = a_session("b", tokens=20_000, mb=1_500)
    choices = choose_for_sessions([offline, online], RATES)
    assert choices == {"a": SessionChoice.REPLAY, "b": SessionChoice.COPY}


@given(
    st.lists(
        st.tuples(st.integers(1, 10**5), st.integers(0, 10**4), st.integers(0, 4_000)), max_size=8
    )
)
def test_everybody_gets_one_choice_and_copies_fit_the_link(
    rows: list[tuple[int, int, int]],
) -> None:
    sessions = [
        a_session(f"s{n}", tokens=tokens, left=left, mb=mb)
        for n, (tokens, left, mb) in enumerate(rows)
    ]
    choices = choose_for_sessions(sessions, RATES)
    assert set(choices) == {session.session_id for session in sessions}
    copied = [s for s in sessions if choices[s.session_id] is SessionChoice.COPY]
    assert sum(s.bytes_uncopied for s in copied) <= 2 * 10**9

"""Which notices a watcher gives, to whom, how often and with how much time left."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.preemption import NoticeKind, NoticeWithdrawn, PreemptionNotice
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.commands import Outcome

AWatcher = Callable[..., Any]
AReading = Callable[..., Any]
START_UNIX_NS = 1_800_000_000 * NS_PER_S


def grace_s(notice: PreemptionNotice) -> float | None:
    return None if notice.grace_ns is None else notice.grace_ns / NS_PER_S


def test_a_notice_seen_for_the_first_time_goes_to_the_bus_and_to_the_workers(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading("n", detail="terminate"))
    [notice] = watcher.take_given()
    [told] = watcher.take_told()
    assert told.notices == (notice,)
    assert told.connection_id is None
    assert (notice.notice_id, notice.node_id, notice.source) == ("n", "node-a", "cloud")
    assert (notice.detail, notice.observed_at_unix_ns) == ("terminate", watcher.now_unix_ns)
    assert watcher.outcomes() == [Outcome.NOTICE_RAISED]


def test_the_same_notice_again_is_no_news(a_watcher: AWatcher, a_reading: AReading) -> None:
    watcher = a_watcher()
    for _ in range(5):
        watcher.observe(a_reading())
    assert len(watcher.take_given()) == 1
    assert watcher.core.counters.notices_raised == 1


def test_two_kinds_under_one_id_are_two_notices(a_watcher: AWatcher, a_reading: AReading) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading("n"), a_reading("n", kind=NoticeKind.REBALANCE, grace_ns=None))
    assert [notice.kind for notice in watcher.take_given()] == ["preemption", "rebalance"]


@pytest.mark.parametrize(
    ("known_s", "typical_s", "configured_s", "left_s"),
    [
        (120, None, None, 118),
        (120, 30, None, 28),
        (20, 30, None, 18),
        (120, None, 60, 58),
        (None, 30, None, 28),
        (None, 30, 10, 8),
        (None, None, None, None),
        (None, None, 60, None),
        (1, None, None, 0),
        (0, None, None, 0),
        (-3600, None, None, 0),
        (None, 0, None, 0),
    ],
)
def test_the_grace_is_the_least_that_is_known_or_configured_less_the_safety_margin(
    a_watcher: AWatcher,
    a_reading: AReading,
    known_s: int | None,
    typical_s: int | None,
    configured_s: int | None,
    left_s: int | None,
) -> None:
    watcher = a_watcher(
        safety_ns=2 * NS_PER_S,
        grace_ns_max=None if configured_s is None else configured_s * NS_PER_S,
    )
    deadline = None if known_s is None else watcher.now_unix_ns + known_s * NS_PER_S
    typical_ns = None if typical_s is None else typical_s * NS_PER_S
    watcher.observe(a_reading(deadline_at_unix_ns=deadline, grace_ns=typical_ns))
    [notice] = watcher.take_given()
    assert grace_s(notice) == left_s
    assert notice.deadline_at_unix_ns == deadline


def test_every_repeat_carries_what_is_left_at_its_sending(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading(grace_ns=8 * NS_PER_S))
    watcher.advance(9_000)
    published = watcher.take_given()
    assert [grace_s(notice) for notice in published] == [6, 4, 2, 0, 0]
    assert [told.notices for told in watcher.take_told()] == [(one,) for one in published]


def test_a_worker_that_connects_late_is_told_alone_and_with_what_is_left(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading(grace_ns=30 * NS_PER_S))
    watcher.advance(1_500)
    watcher.take_told()
    watcher.connect(7)
    [told] = watcher.take_told()
    assert told.connection_id == 7
    assert [grace_s(notice) for notice in told.notices] == [26.5]


def test_a_worker_that_connects_in_peace_is_told_nothing(a_watcher: AWatcher) -> None:
    watcher = a_watcher()
    watcher.connect()
    assert watcher.take_told() == []


def test_a_wall_clock_that_steps_moves_no_deadline(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    reading = a_reading(deadline_at_unix_ns=watcher.now_unix_ns + 60 * NS_PER_S, grace_ns=None)
    watcher.observe(reading)
    watcher.advance(1_000)
    watcher.wall_step_ns = 40 * NS_PER_S
    watcher.observe(reading)
    watcher.take_published()
    watcher.advance(1_000)
    assert [grace_s(notice) for notice in watcher.take_given()] == [56]


def test_a_deadline_that_the_source_moves_is_given_anew_at_once(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    deadline = watcher.now_unix_ns + 60 * NS_PER_S
    watcher.observe(a_reading(deadline_at_unix_ns=deadline, grace_ns=None))
    watcher.take_told()
    watcher.observe(a_reading(deadline_at_unix_ns=deadline - 50 * NS_PER_S, grace_ns=None))
    assert [grace_s(notice) for notice in watcher.take_given()] == [58, 8]
    [told] = watcher.take_told()
    assert [grace_s(notice) for notice in told.notices] == [8]
    assert watcher.outcomes() == [Outcome.NOTICE_RAISED, Outcome.NOTICE_CHANGED]


def test_a_notice_that_its_source_leaves_out_is_withdrawn_for_all(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher(withdrawn_repeats=3)
    watcher.observe(a_reading("kept"), a_reading("gone"))
    watcher.take_published()
    watcher.take_told()
    watcher.observe(a_reading("kept"))
    assert watcher.take_withdrawn() == ["gone"]
    [told] = watcher.take_told()
    assert [type(notice) for notice in told.notices] == [PreemptionNotice, NoticeWithdrawn]
    watcher.advance(10_000)
    assert watcher.take_withdrawn() == ["gone", "gone"]


def test_a_worker_that_missed_the_withdrawal_hears_of_it_when_it_connects(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading())
    watcher.observe()
    watcher.take_told()
    watcher.connect()
    [told] = watcher.take_told()
    assert [type(notice) for notice in told.notices] == [NoticeWithdrawn]


def test_a_withdrawn_notice_that_comes_back_holds_again(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading())
    watcher.observe()
    watcher.take_published()
    watcher.observe(a_reading())
    watcher.advance(3_000)
    assert len(watcher.take_given()) == 2


def test_a_failure_or_an_unreadable_answer_withdraws_nothing(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading())
    watcher.fail()
    watcher.observe(is_whole=False, unreadable=("not JSON",))
    watcher.take_published()
    watcher.advance(3_000)
    assert len(watcher.take_given()) == 1


def test_a_notice_that_replaces_another_is_given_before_that_is_withdrawn(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading("early"))
    watcher.take_published()
    watcher.observe(a_reading("earlier"))
    assert [notice.notice_id for notice in watcher.take_published()] == ["earlier", "early"]


def test_one_source_never_withdraws_the_notice_of_another(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading("n"), source="cloud")
    watcher.observe(source="other")
    watcher.observe(a_reading("n", detail="other words"), source="other")
    watcher.observe(source="other")
    assert len(watcher.take_given()) == 1
    assert watcher.core.notices_held == 1


def test_what_a_source_told_once_is_forgotten_long_after_its_deadline_without_a_word(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher(linger_ns=10 * NS_PER_S)
    watcher.observe(a_reading(grace_ns=20 * NS_PER_S), source="queue")
    watcher.observe(source="queue")
    watcher.advance(27_000)
    assert watcher.core.notices_held == 1
    watcher.take_published()
    watcher.advance(3_000)
    assert watcher.core.notices_held == 0
    assert watcher.take_published() == []
    assert watcher.outcomes()[-1] is Outcome.NOTICE_EXPIRED


def test_a_notice_first_seen_in_a_half_readable_answer_is_withdrawn_by_a_whole_one(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher(linger_ns=1)
    watcher.observe(a_reading(), is_whole=False, unreadable=("the rest",))
    watcher.advance(600_000)
    assert watcher.core.notices_held == 1
    watcher.take_published()
    watcher.observe()
    assert watcher.take_withdrawn() == ["n"]


def test_what_a_source_keeps_telling_is_kept_past_its_deadline(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher(linger_ns=1 * NS_PER_S)
    watcher.observe(a_reading(grace_ns=3 * NS_PER_S))
    watcher.advance(3_600_000)
    assert watcher.core.notices_held == 1
    assert grace_s(watcher.take_given()[-1]) == 0


def test_a_notice_without_a_deadline_that_was_told_once_is_forgotten_too(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher(unknown_deadline_ns=60 * NS_PER_S, linger_ns=10 * NS_PER_S)
    watcher.observe(a_reading(grace_ns=None), source="queue")
    watcher.advance(68_000)
    assert watcher.core.notices_held == 1
    watcher.advance(4_000)
    assert watcher.core.notices_held == 0


def test_a_notice_about_another_node_goes_to_the_bus_alone(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading("far", node_id="node-b"), source="queue")
    assert [notice.node_id for notice in watcher.take_given()] == ["node-b"]
    watcher.connect()
    assert watcher.take_told() == []


def test_notices_past_the_bound_are_refused_and_counted(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher(notices_max=2)
    watcher.observe(*(a_reading(f"n{number}") for number in range(3)))
    assert [notice.notice_id for notice in watcher.take_given()] == ["n0", "n1"]
    assert watcher.core.counters.notices_refused == 1
    watcher.observe(a_reading("n1"), a_reading("n2"))
    assert watcher.core.notices_held == 1, "the room is only made by that very answer"
    watcher.observe(a_reading("n1"), a_reading("n2"))
    assert watcher.core.notices_held == 2


def test_withdrawals_past_the_bound_are_cut_short(a_watcher: AWatcher, a_reading: AReading) -> None:
    watcher = a_watcher(notices_max=2)
    for number in range(4):
        watcher.observe(a_reading(f"n{number}"))
    watcher.observe()
    watcher.take_published()
    watcher.advance(2_000)
    assert watcher.take_withdrawn() == ["n2", "n3"]


def test_what_the_source_says_is_cut_to_what_a_message_carries(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading(detail="a\n b " * 1000))
    [notice] = watcher.take_given()
    assert len(notice.detail) == 500
    assert "\n" not in notice.detail

"""When sources are asked, and what is said about those that do not answer."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.kernel.core import TimerFired
from libs.kernel.errors import InvariantViolation
from libs.kernel.units import NS_PER_MS, NS_PER_S
from services.preemption_watcher.commands import Outcome
from services.preemption_watcher.events import SourceFailed, StopRequested

AWatcher = Callable[..., Any]
AReading = Callable[..., Any]


def delay_ms(watcher: Any, source: str = "cloud") -> int:
    due_ns: int = watcher.timers[f"poll/{source}"]
    return (due_ns - watcher.now_ns) // NS_PER_MS


def test_every_source_is_asked_at_the_start(a_watcher: AWatcher) -> None:
    assert set(a_watcher().polls) == {"cloud", "other", "queue"}


def test_a_source_is_asked_again_at_its_interval_and_once_at_a_time(a_watcher: AWatcher) -> None:
    watcher = a_watcher()
    watcher.observe()
    assert delay_ms(watcher) == 1_000
    watcher.advance(1_000)
    assert "cloud" in watcher.polls
    watcher.handle(TimerFired(key="poll/cloud", cause_id="late"))


def test_failures_in_a_row_make_the_next_poll_later_up_to_a_bound(a_watcher: AWatcher) -> None:
    watcher = a_watcher(backoff_ns=500 * NS_PER_MS, backoff_ns_max=10 * NS_PER_S)
    delays = []
    for _ in range(7):
        watcher.fail()
        delays.append(delay_ms(watcher))
    assert delays == [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]
    watcher.observe()
    assert delay_ms(watcher) == 1_000
    watcher.fail()
    assert delay_ms(watcher) == 500


def test_one_source_that_fails_delays_no_other(a_watcher: AWatcher, a_reading: AReading) -> None:
    watcher = a_watcher()
    for _ in range(20):
        watcher.fail()
    watcher.observe(a_reading(), source="other")
    assert len(watcher.take_given()) == 1


def test_the_same_complaint_is_logged_once_and_its_end_once(a_watcher: AWatcher) -> None:
    watcher = a_watcher()
    for reason in ("no answer", "no answer", "HTTP 500", "HTTP 500"):
        watcher.fail(reason)
    assert watcher.outcomes() == [Outcome.SOURCE_FAILED, Outcome.SOURCE_FAILED]
    watcher.observe()
    watcher.observe()
    assert watcher.outcomes() == [Outcome.SOURCE_RECOVERED]
    assert watcher.core.polling.sources["cloud"].failures == 4


def test_every_unreadable_part_is_counted_and_the_rest_is_taken(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading(), unreadable=("no id", "no time"), is_whole=False)
    assert len(watcher.take_given()) == 1
    assert watcher.core.polling.sources["cloud"].payloads_unreadable == 2
    [line] = [line for line in watcher.logged if line.outcome is Outcome.SOURCE_UNREADABLE]
    assert (line.source, line.detail) == ("cloud", "no id; no time")


def test_an_outcome_that_no_poll_waits_for_is_our_own_bug(a_watcher: AWatcher) -> None:
    watcher = a_watcher()
    with pytest.raises(InvariantViolation, match="cloud"):
        watcher.handle(SourceFailed(op_id="x", source="cloud", reason="", cause_id="poll"))


def test_a_timer_of_nobody_asks_nobody(a_watcher: AWatcher) -> None:
    watcher = a_watcher()
    watcher.handle(TimerFired(key="poll/unheard-of", cause_id="timer"))
    assert set(watcher.polls) == {"cloud", "other", "queue"}


def test_a_watcher_that_is_told_to_end_ends(a_watcher: AWatcher, a_reading: AReading) -> None:
    watcher = a_watcher()
    watcher.handle(StopRequested(cause_id="signal"))
    assert watcher.is_stopped
    watcher.observe(a_reading())
    assert watcher.take_published() == []


def test_where_the_end_is_itself_a_notice_the_watcher_stays_for_its_grace(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher(stop_after_ns=30 * NS_PER_S)
    watcher.handle(StopRequested(cause_id="signal"))
    watcher.observe(a_reading("sigterm"), source="queue")
    watcher.advance(29_000)
    assert not watcher.is_stopped
    assert len(watcher.take_given()) == 15
    watcher.advance(1_000)
    assert watcher.is_stopped

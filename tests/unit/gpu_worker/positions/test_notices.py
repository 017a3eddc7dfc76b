"""A node that is told to end: the worker says for how long it will be there, and goes in time."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.preemption import NoticeKind, NoticeWithdrawn, PreemptionNotice
from libs.contracts.sessions import RefuseReason
from libs.kernel.units import NS_PER_MS
from services.gpu_worker.events import DrainRequested, NoticeReceived

A = Callable[..., Any]
NAME = {"notice_id": "n-1", "node_id": "node-a", "source": "manual"}


def a_notice(grace_ms: int | None, **changes: Any) -> NoticeReceived:
    fields = {**NAME, "kind": NoticeKind.PREEMPTION, **changes}
    grace_ns = None if grace_ms is None else grace_ms * NS_PER_MS
    message = PreemptionNotice(observed_at_unix_ns=1, grace_ns=grace_ns, **fields)
    return NoticeReceived(message=message, cause_id="notice")


def withdrawn(**changes: Any) -> NoticeReceived:
    fields = {**NAME, "kind": NoticeKind.PREEMPTION, **changes}
    return NoticeReceived(message=NoticeWithdrawn(**fields), cause_id="notice")


@pytest.fixture
def serving(a_planned_worker: A, a_hand_over: A, a_roster: A) -> Any:
    """A planned worker that serves alone."""
    worker = a_planned_worker("w-1")
    a_hand_over(worker).serve(a_roster("replica-1", "w-1"))
    return worker


def test_the_grace_is_counted_down_on_the_workers_own_clock(serving: Any) -> None:
    serving.handle(a_notice(5_000))
    assert (serving.report.grace_left_ms, serving.report.is_draining) == (5_000, False)
    serving.advance(2_000)
    assert serving.report.grace_left_ms == 3_000


def test_the_earliest_end_counts_and_a_late_repetition_grants_nothing(serving: Any) -> None:
    serving.handle(a_notice(5_000))
    serving.advance(1_000)
    serving.handle(a_notice(5_000))
    assert serving.report.grace_left_ms == 4_000
    serving.handle(a_notice(2_000, notice_id="n-2", kind=NoticeKind.MAINTENANCE))
    assert serving.report.grace_left_ms == 2_000
    serving.handle(withdrawn(notice_id="n-2", kind=NoticeKind.MAINTENANCE))
    assert serving.report.grace_left_ms == 4_000


@pytest.mark.parametrize(
    "notice", [a_notice(100, node_id="node-b"), a_notice(100, kind=NoticeKind.REBALANCE)]
)
def test_other_nodes_and_mere_likelihoods_change_nothing(serving: Any, notice: Any) -> None:
    serving.handle(notice)
    serving.advance(200)
    assert (serving.report.grace_left_ms, serving.report.is_serving) == (None, True)
    assert not serving.report.is_draining


def test_what_is_still_here_when_the_grace_is_nearly_over_goes_elsewhere(
    serving: Any, a_start: A
) -> None:
    serving.start(a_start("r", max_tokens=50))
    serving.handle(a_notice(1_000))
    serving.advance(600)
    serving.finish_step()
    assert serving.refusals == []
    serving.advance(150)
    assert [(r.reason, r.target_worker_id) for r in serving.refusals] == [(RefuseReason.MOVED, "")]
    assert serving.report.is_draining
    serving.start(a_start("late"))
    assert serving.refusals[-1].reason is RefuseReason.DRAINING
    assert serving.stopped is None


def test_a_notice_withdrawn_lets_the_worker_serve_on(serving: Any, a_start: A) -> None:
    serving.handle(a_notice(1_000))
    serving.handle(withdrawn())
    serving.advance(2_000)
    assert (serving.report.grace_left_ms, serving.report.is_draining) == (None, False)
    serving.start(a_start("r"))
    assert serving.refusals == []


def test_a_notice_without_a_known_end_is_told_once_it_is_known(serving: Any) -> None:
    serving.handle(a_notice(None))
    assert serving.report.grace_left_ms is None
    serving.handle(a_notice(3_000))
    serving.handle(a_notice(None))
    assert serving.report.grace_left_ms == 3_000


def test_a_solo_worker_takes_nothing_new_from_the_notice_on_and_ends_what_it_can(
    a_worker: A, a_start: A
) -> None:
    worker = a_worker(node_id="node-a")
    worker.start("r", max_tokens=50)
    worker.start("short", max_tokens=2)
    worker.handle(a_notice(2_000))
    assert worker.take_reports()[-1].is_draining
    worker.start("late")
    assert worker.take_refusals() == [("late", 1, RefuseReason.DRAINING)]
    worker.finish_steps(3)
    worker.advance(1_800)
    assert worker.take_refusals() == [("r", 1, RefuseReason.MOVED)]
    assert worker.exit_code is None
    worker.handle(withdrawn())
    worker.start("again")
    assert worker.take_refusals() == []


def test_what_is_sent_away_at_the_end_goes_to_where_its_kv_is(
    serving: Any, a_planned_worker: A, a_hand_over: A, a_roster: A, a_start: A
) -> None:
    target = a_planned_worker("w-2")
    migrator = a_hand_over(serving, target, epoch=2, revision=2)
    before, after = a_roster("replica-1", "w-1"), a_roster("replica-2", "w-2", epoch=2)
    serving.start(a_start("r", max_tokens=50))
    serving.finish_step()
    migrator.prepare(after)
    migrator.copy(before, after)
    serving.handle(a_notice(100))
    assert [r.target_worker_id for r in serving.refusals] == ["w-2"]


def test_a_worker_that_drains_stays_until_its_replica_needs_it_no_more(
    a_planned_worker: A, a_hand_over: A, a_roster: A
) -> None:
    lead, member = a_planned_worker("w-1"), a_planned_worker("w-2", drain_ns_max=10**10)
    migrator = a_hand_over(lead, member)
    roster = a_roster("replica-1", "w-1", "w-2", shards=2)
    migrator.serve(roster)
    member.handle(DrainRequested(cause_id="signal"))
    member.advance(5_000)
    assert member.stopped is None
    assert member.report.is_draining
    migrator.stop(roster)
    migrator.drop(roster)
    member.advance(400)
    assert member.stopped is not None
    assert member.stopped.exit_code == 0

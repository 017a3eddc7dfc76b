"""What a person or the owner of an evacuation may ask of a watcher."""

from collections.abc import Callable
from typing import Any

from libs.contracts.preemption import (
    NoticeKind,
    NoticeRejectReason,
    NoticeRequestAccepted,
    NoticeRequestRejected,
    RaiseNotice,
)
from libs.contracts.wire import Encoding
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.events import (
    Asker,
    ConfirmationFailed,
    EvacuationConfirmed,
    RequestReceived,
    RequestUnreadable,
)

AWatcher = Callable[..., Any]
AReading = Callable[..., Any]
GRACE_NS = 30 * NS_PER_S


def reason_of(answer: Any) -> NoticeRejectReason:
    assert isinstance(answer, NoticeRequestRejected)
    return answer.reason


def test_a_notice_by_request_is_given_like_any_other(a_watcher: AWatcher) -> None:
    watcher = a_watcher()
    answer = watcher.request("raise", "drill", grace_ns=GRACE_NS, kind=NoticeKind.MAINTENANCE)
    assert answer == NoticeRequestAccepted(notice_id="drill", node_id="node-a")
    [notice] = watcher.take_given()
    assert (notice.source, notice.kind) == ("manual", "maintenance")
    assert notice.grace_ns == GRACE_NS - 2 * NS_PER_S
    assert len(watcher.take_told()) == 1


def test_a_request_repeated_is_accepted_again_and_its_grace_runs_from_the_first(
    a_watcher: AWatcher,
) -> None:
    watcher = a_watcher()
    watcher.request("raise", "drill", grace_ns=GRACE_NS)
    watcher.advance(1_000)
    assert isinstance(watcher.request("raise", "drill", grace_ns=GRACE_NS), NoticeRequestAccepted)
    watcher.take_published()
    watcher.advance(1_000)
    [notice] = watcher.take_given()
    assert notice.grace_ns == 26 * NS_PER_S


def test_a_notice_by_request_can_be_withdrawn(a_watcher: AWatcher) -> None:
    watcher = a_watcher()
    watcher.request("raise", "drill", grace_ns=GRACE_NS)
    watcher.take_published()
    assert isinstance(watcher.request("withdraw", "drill"), NoticeRequestAccepted)
    assert watcher.take_withdrawn() == ["drill"]
    again = watcher.request("withdraw", "drill")
    assert reason_of(again) is NoticeRejectReason.UNKNOWN_NOTICE


def test_the_clouds_notice_cannot_be_withdrawn_by_request(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading("n"))
    answer = watcher.request("withdraw", "n")
    assert reason_of(answer) is NoticeRejectReason.OTHER_SOURCE
    assert "cloud" in answer.message
    assert watcher.core.notices_held == 1


def test_a_request_about_another_node_is_rejected(a_watcher: AWatcher) -> None:
    watcher = a_watcher()
    answer = watcher.request("raise", "drill", node_id="node-b")
    assert reason_of(answer) is NoticeRejectReason.WRONG_NODE
    assert watcher.core.counters.requests_rejected == 1


def test_where_only_the_cloud_may_give_notice_a_request_is_rejected_and_a_confirmation_is_not(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher(is_manual_allowed=False)
    for name in ("raise", "withdraw"):
        answer = watcher.request(name, "drill")
        assert reason_of(answer) is NoticeRejectReason.NOT_ALLOWED
    assert watcher.core.notices_held == 0
    watcher.observe(a_reading("n"))
    assert isinstance(watcher.request("confirm", "n"), NoticeRequestAccepted)


def test_a_watcher_that_is_full_says_so(a_watcher: AWatcher) -> None:
    watcher = a_watcher(notices_max=1)
    watcher.request("raise", "one")
    assert reason_of(watcher.request("raise", "two")) is NoticeRejectReason.FULL


def test_what_is_no_request_is_answered_as_invalid(a_watcher: AWatcher) -> None:
    watcher = a_watcher()
    asker = Asker(reply_to="inbox", encoding=Encoding.JSON)
    watcher.handle(RequestUnreadable(asker=asker, reason="grace_ns: too low", cause_id="?"))
    [answer] = watcher.answers
    assert reason_of(answer) is NoticeRejectReason.INVALID
    assert answer.message == "grace_ns: too low"


def test_a_request_that_nobody_waits_for_is_done_and_not_answered(a_watcher: AWatcher) -> None:
    watcher = a_watcher()
    request = RaiseNotice(notice_id="drill", node_id="node-a", grace_ns=GRACE_NS)
    asker = Asker(reply_to=None, encoding=Encoding.JSON)
    watcher.handle(RequestReceived(request=request, asker=asker, now_unix_ns=1, cause_id="drill"))
    assert watcher.answers == []
    assert watcher.core.notices_held == 1


def test_a_confirmed_evacuation_is_accepted_at_once_where_the_cloud_does_not_ask(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading("n"), source="cloud")
    assert isinstance(watcher.request("confirm", "n"), NoticeRequestAccepted)
    assert watcher.confirming == []


def test_a_confirmed_evacuation_is_accepted_once_the_cloud_has_taken_it(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading("n"), source="other")
    assert watcher.request("confirm", "n") is None
    [command] = watcher.confirming
    assert (command.source, command.notice_id) == ("other", "n")
    watcher.handle(EvacuationConfirmed(op_id=command.op_id, cause_id="confirm"))
    assert watcher.answers == [NoticeRequestAccepted(notice_id="n", node_id="node-a")]


def test_a_cloud_that_cannot_be_told_makes_the_request_fail_and_may_be_told_again(
    a_watcher: AWatcher, a_reading: AReading
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading("n"), source="other")
    watcher.request("confirm", "n")
    first = watcher.confirming.pop()
    watcher.handle(ConfirmationFailed(op_id=first.op_id, reason="HTTP 500", cause_id="confirm"))
    [answer] = watcher.answers
    assert (reason_of(answer), answer.message) == (NoticeRejectReason.UNAVAILABLE, "HTTP 500")
    watcher.request("confirm", "n")
    assert watcher.confirming[0].op_id != first.op_id


def test_nothing_can_be_confirmed_that_was_never_given(a_watcher: AWatcher) -> None:
    answer = a_watcher().request("confirm", "n")
    assert reason_of(answer) is NoticeRejectReason.UNKNOWN_NOTICE

"""Replicas that change their shape: sessions follow their KV, or wait for whoever serves next."""

from collections.abc import Callable
from typing import Any

from libs.contracts.online import RequestAccepted, RequestRejected
from libs.contracts.sessions import RefuseReason, SessionRefused, StartSession
from services.online_router.commands import AppendJournal
from services.online_router.events import WorkerAnswered

ADesk = Callable[..., Any]


def move(desk: Any, *, target_worker_id: str = "") -> None:
    answer = SessionRefused(
        worker_id="w1",
        request_id="r1",
        session_epoch=1,
        reason=RefuseReason.MOVED,
        target_worker_id=target_worker_id,
    )
    desk.tell(WorkerAnswered(answer=answer, cause_id="t"))


def an_accepted(a_desk: ADesk, **options: object) -> Any:
    """A session on w1; w2, w3 would come after it in the order of ids."""
    desk = a_desk("w1", **options)
    desk.accept()
    desk.worker_reports("w2")
    desk.worker_reports("w3")
    return desk


def test_a_moved_session_goes_where_its_kv_went_with_all_its_tokens(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    desk.tokens(0, 2)
    desk.commit()
    move(desk, target_worker_id="w3")
    (record,) = desk.commit()
    assert (record.worker_id, record.session_epoch) == ("w3", 2)
    (start,) = desk.sent_to("w3")
    assert isinstance(start, StartSession)
    assert start.generated_token_ids == (100, 101)


def test_moving_often_is_no_strike(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk, strikes_max=1)
    move(desk, target_worker_id="w3")
    (record,) = desk.commit()
    assert record.worker_id == "w3"


def test_a_target_that_nobody_has_heard_of_is_not_followed(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    move(desk, target_worker_id="w9")
    (record,) = desk.commit()
    assert record.worker_id == "w2"


def test_a_session_never_moves_back_to_the_replica_that_gave_it_up(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.accept()
    move(desk)
    assert not desk.all(AppendJournal)
    desk.worker_reports("w2", is_planned=True)
    (record,) = desk.commit()
    assert record.worker_id == "w2"


def test_a_member_of_a_replica_gets_no_session(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.worker_reports("w1", is_planned=True, is_serving=False)
    desk.worker_reports("w2", is_planned=True)
    desk.accept()
    assert [type(message) for message in desk.sent_to("w2")] == [StartSession]


def test_while_no_replica_serves_a_request_is_accepted_and_waits_for_one(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.worker_reports("w1", is_planned=True, is_serving=False, blocks_total=0)
    desk.accept()
    assert any(isinstance(message, RequestAccepted) for message in desk.replies())
    assert not desk.sent_to("w1")
    desk.worker_reports("w1", is_planned=True)
    desk.commit()
    assert [type(message) for message in desk.sent_to("w1")] == [StartSession]


def test_where_nothing_is_planned_a_fleet_that_serves_nothing_rejects(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.worker_reports("w1", is_draining=True)
    desk.submit()
    desk.tokenize()
    desk.make_claim()
    (rejection,) = desk.replies()
    assert isinstance(rejection, RequestRejected)

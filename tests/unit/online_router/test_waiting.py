"""Sessions that no worker has room for: their order, and who gets them."""

from collections.abc import Callable

from libs.contracts.journal import SessionDispatched, SessionOpened
from libs.contracts.online import CancelRequest, FinishReason, RequestAccepted
from libs.contracts.reports import RouterReport
from libs.contracts.sessions import RefuseReason, SessionRefused, StartSession
from libs.kernel.core import TimerFired
from services.online_router.commands import AppendJournal, PublishReport, SendToWorker
from services.online_router.events import CancelReceived, WorkerAnswered
from services.online_router.sessions import Phase
from tests.unit.online_router.conftest import Desk

ADesk = Callable[..., Desk]
FULL = {"sessions_running_max": 2, "sessions_running": 2, "sessions_waiting": 1}


def dispatched(desk: Desk) -> list[str]:
    """Store what the last event has to write, if anything; return what was dispatched by it."""
    if not desk.all(AppendJournal):
        return []
    records = desk.commit()
    return [r.request_id for r in records if isinstance(r, SessionDispatched)]


def started(desk: Desk) -> dict[str, str]:
    """Return whom the last event sent where."""
    return {
        command.message.spec.request_id: command.worker_id
        for command in desk.all(SendToWorker)
        if isinstance(command.message, StartSession)
    }


def with_waiting(a_desk: ADesk, *request_ids: str, **fields: object) -> Desk:
    """Return a desk whose one worker is full, with these requests waiting."""
    desk = a_desk()
    desk.worker_reports("w1", **FULL)
    for request_id in request_ids:
        desk.now_ns += 1
        desk.accept(request_id, **fields)
    return desk


def test_without_room_a_request_is_promised_and_waits(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.worker_reports("w1", **FULL)
    desk.submit()
    desk.tokenize()
    desk.make_claim()
    (record,) = desk.commit()
    assert isinstance(record, SessionOpened)
    assert record.worker_id == ""
    assert [type(reply) for reply in desk.replies()] == [RequestAccepted]
    assert not started(desk)
    assert desk.core.state.sessions["r1"].phase is Phase.WAITING


def test_whoever_makes_room_gets_the_first_of_those_who_wait(a_desk: ADesk) -> None:
    desk = with_waiting(a_desk, "z", "a")
    desk.worker_reports("w1", **{**FULL, "sessions_waiting": 0})
    assert dispatched(desk) == ["z"]
    assert started(desk) == {"z": "w1"}


def test_a_newcomer_gets_its_share_and_no_more(a_desk: ADesk) -> None:
    desk = with_waiting(a_desk, *(f"r{number}" for number in range(7)))
    desk.worker_reports("w2", sessions_running_max=4)
    assert dispatched(desk) == ["r0", "r1", "r2", "r3"]
    desk.worker_reports("w3", sessions_running_max=2)
    assert dispatched(desk) == ["r4", "r5"]
    assert desk.core.state.sessions_waiting == 1


def test_a_report_from_before_the_dispatch_makes_no_room(a_desk: ADesk) -> None:
    desk = with_waiting(a_desk, *(f"r{number}" for number in range(7)))
    desk.worker_reports("w2", sessions_running_max=4)
    dispatched(desk)
    desk.worker_reports("w2", sessions_running_max=4)
    assert not dispatched(desk)


def test_the_end_of_a_session_makes_room_at_once(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.worker_reports("w1", sessions_running_max=1)
    for request_id in ("r1", "r2", "r3"):
        desk.now_ns += 1
        desk.accept(request_id)
    assert started(desk) == {}
    desk.tokens(0, finish_reason=FinishReason.STOP)
    assert dispatched(desk) == ["r2"]


def test_higher_priority_goes_first_then_who_came_first(a_desk: ADesk) -> None:
    desk = with_waiting(a_desk, "b", "a")
    desk.now_ns += 1
    desk.accept("offline", priority=-1)
    desk.now_ns += 1
    desk.accept("urgent", priority=5)
    desk.worker_reports("w2", sessions_running_max=8)
    assert dispatched(desk) == ["urgent", "b", "a", "offline"]


def test_offline_work_that_waits_keeps_nobody_online_waiting(a_desk: ADesk) -> None:
    desk = a_desk()
    full = {"sessions_running_max": 4, "sessions_running": 4, "sessions_waiting": 2}
    desk.worker_reports("w1", **full, offline_running=4, offline_waiting=2, blocks_offline=60)
    desk.accept("offline", priority=-1)
    assert desk.core.state.sessions_waiting == 1
    desk.accept("online")
    assert started(desk) == {"online": "w1"}


def test_sessions_of_a_lost_worker_wait_where_they_stood(a_desk: ADesk) -> None:
    desk = with_waiting(a_desk, "r1", "r2")
    desk.worker_reports("w2", sessions_running_max=1, sessions_running=1)
    assert dispatched(desk) == ["r1"]
    desk.worker_reports("w1", **FULL)
    for _ in range(10):
        desk.worker_reports("w1", **FULL)
        desk.echo()
    assert "w2" not in desk.core.state.workers
    assert desk.core.state.sessions["r1"].phase is Phase.WAITING
    desk.worker_reports("w3", sessions_running_max=1, sessions_running=1)
    assert dispatched(desk) == ["r1"]


def test_tokens_of_the_worker_that_had_it_change_nothing_while_it_waits(a_desk: ADesk) -> None:
    desk = with_waiting(a_desk)
    desk.worker_reports("w2", sessions_running_max=1, sessions_running=1)
    desk.accept("r1")
    assert started(desk) == {"r1": "w2"}
    refusal = SessionRefused(
        worker_id="w2", request_id="r1", session_epoch=1, reason=RefuseReason.UNKNOWN_SESSION
    )
    desk.worker_reports("w2", **FULL)
    desk.tell(WorkerAnswered(answer=refusal, cause_id="t"))
    assert desk.core.state.sessions["r1"].phase is Phase.WAITING
    desk.tokens(0, count=3, worker_id="w2")
    assert desk.core.state.sessions["r1"].token_ids == []
    desk.worker_reports("w3")
    dispatched(desk)
    desk.tokens(0, count=3, worker_id="w2")
    assert desk.core.state.sessions["r1"].token_ids == []
    desk.tokens(0, count=3, worker_id="w3", session_epoch=2)
    assert len(desk.core.state.sessions["r1"].token_ids) == 3


def test_who_cancels_leaves_the_line(a_desk: ADesk) -> None:
    desk = with_waiting(a_desk, "r1", "r2")
    cancellation = CancelRequest(request_id="r1")
    desk.tell(CancelReceived(cancellation=cancellation, cause_id="r1"))
    desk.commit()
    desk.worker_reports("w2", sessions_running_max=8)
    assert dispatched(desk) == ["r2"]


def test_a_first_dispatch_counts_as_no_move(a_desk: ADesk) -> None:
    desk = with_waiting(a_desk, "r1")
    desk.worker_reports("w2")
    assert dispatched(desk) == ["r1"]
    assert desk.core.state.counters.resumed == 0


def test_a_report_says_how_many_wait(a_desk: ADesk) -> None:
    desk = with_waiting(a_desk, "r1", "r2")
    desk.tell(TimerFired(key="report", cause_id="t"))
    report = desk.only(PublishReport).report
    assert isinstance(report, RouterReport)
    assert report.sessions_waiting == 2

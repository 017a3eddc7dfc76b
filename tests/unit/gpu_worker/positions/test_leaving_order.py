"""Whose KV leaves first when a node ends."""

from libs.contracts.online import SamplingParameters
from libs.contracts.sessions import SessionSpec, StartSession
from libs.engine.scheduler import Scheduler, SchedulerOptions
from services.gpu_worker.sessions import HeldSession

SCHEDULER = Scheduler(
    SchedulerOptions(
        step_tokens_max=16,
        sequences_max=4,
        block_tokens=4,
        blocks_total=64,
        context_tokens_max=128,
        eos_token_ids=frozenset(),
    )
)


def a_session(request_id: str, *, tokens: int, priority: int = 0) -> HeldSession:
    spec = SessionSpec(
        request_id=request_id,
        alias="tiny",
        prompt_token_ids=tuple(range(tokens)),
        max_tokens=8,
        sampling=SamplingParameters(temperature=0.0),
        priority=priority,
    )
    start = StartSession(router_id="router-1", session_epoch=1, spec=spec)
    return HeldSession(start, scheduler=SCHEDULER, resend_delay_ns=1)


def test_online_sessions_leave_before_offline_ones_and_long_ones_before_short() -> None:
    sessions = [
        a_session("offline-long", tokens=90, priority=-5),
        a_session("online-short", tokens=10),
        a_session("offline-short", tokens=5, priority=-5),
        a_session("online-long", tokens=40),
    ]
    leaving = [session.request_id for session in sorted(sessions, key=HeldSession.leaving_order)]
    assert leaving == ["online-long", "online-short", "offline-long", "offline-short"]


def test_equal_sessions_leave_in_the_order_of_their_ids() -> None:
    sessions = [a_session("b", tokens=4), a_session("a", tokens=4)]
    assert [s.request_id for s in sorted(sessions, key=HeldSession.leaving_order)] == ["a", "b"]

"""Tokens, workers that die, and the order of journal and relay."""

from collections.abc import Callable
from typing import Any

from libs.contracts.journal import SessionDispatched, SessionFailed
from libs.contracts.online import (
    CancelRequest,
    FailReason,
    FinishReason,
    RequestAccepted,
    RequestFinished,
    SamplingParameters,
    ScoredToken,
    TokenLogprobs,
    TokensGenerated,
)
from libs.contracts.sessions import (
    AcknowledgeTokens,
    EndSession,
    RefuseReason,
    SessionRefused,
    SessionStarted,
    StartSession,
)
from libs.kernel.units import NS_PER_MS, NS_PER_S
from services.online_router.commands import AppendJournal, SendToWorker
from services.online_router.events import CancelReceived, PeerUnreachable, WorkerAnswered

ADesk = Callable[..., Any]


def an_accepted(a_desk: ADesk, *worker_ids: str, **options: object) -> Any:
    desk = a_desk(*(worker_ids or ("w1",)), **options)
    desk.accept()
    return desk


def started(desk: Any, *, worker_id: str = "w1", session_epoch: int = 1) -> None:
    answer = SessionStarted(worker_id=worker_id, request_id="r1", session_epoch=session_epoch)
    desk.tell(WorkerAnswered(answer=answer, cause_id="t"))


def refuse(desk: Any, reason: RefuseReason, *, session_epoch: int = 1) -> None:
    answer = SessionRefused(
        worker_id="w1", request_id="r1", session_epoch=session_epoch, reason=reason
    )
    desk.tell(WorkerAnswered(answer=answer, cause_id="t"))


def receipts(desk: Any, worker_id: str = "w1") -> list[tuple[int, bool]]:
    found = [m for m in desk.sent_to(worker_id) if isinstance(m, AcknowledgeTokens)]
    return [(r.next_index, r.is_resend_wanted) for m in found for r in m.receipts]


def test_a_token_is_relayed_and_acknowledged_only_once_it_is_durable(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    desk.tokens(0)
    assert not desk.replies()
    assert not receipts(desk)
    desk.commit()
    (message,) = desk.replies()
    assert isinstance(message, TokensGenerated)
    assert (message.first_index, message.token_ids, message.texts) == (0, (100,), ("t0",))
    assert receipts(desk) == [(1, False)]


def test_tokens_that_come_during_an_append_are_relayed_together(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    desk.tokens(0)
    first = desk.only(AppendJournal)
    desk.tokens(1)
    desk.tokens(2)
    assert not desk.all(AppendJournal)
    desk.commands = [first]
    desk.commit()
    assert [m.token_ids for m in desk.replies()] == [(100,)]
    desk.commit()
    assert [m.token_ids for m in desk.replies()] == [(101, 102)]


def test_the_end_comes_after_the_last_token_and_frees_the_session(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    desk.tokens(0, 3, finish_reason=FinishReason.STOP)
    desk.commit()
    tokens, end = desk.replies()
    assert isinstance(tokens, TokensGenerated)
    assert end == RequestFinished(
        request_id="r1", finish_reason=FinishReason.STOP, prompt_tokens=3, completion_tokens=3
    )
    assert receipts(desk) == [(3, False)]
    assert not desk.core.state.sessions


def test_known_tokens_are_dropped_and_acknowledged_again(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    desk.tokens(0, 2)
    desk.commit()
    desk.tokens(0, 2)
    assert not desk.all(AppendJournal)
    assert receipts(desk) == [(2, False)]
    desk.tokens(1, 2)
    (record,) = desk.commit()
    assert (record.first_index, record.token_ids) == (2, (102,))


def test_a_gap_is_asked_about_and_nothing_past_it_is_taken(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    desk.now_ns += NS_PER_S
    desk.tokens(2)
    assert receipts(desk) == [(0, True)]
    assert not desk.all(AppendJournal)
    desk.tokens(3)
    assert not receipts(desk), "asked twice within the interval"


def test_a_client_that_missed_something_gets_it_again(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    desk.tokens(0, 3, finish_reason=FinishReason.LENGTH)
    desk.commit()
    desk.submit(tokens_received=1)
    accepted, tokens, end = desk.replies()
    assert isinstance(accepted, RequestAccepted)
    assert tokens.first_index == 1
    assert isinstance(end, RequestFinished)


def test_an_ended_request_is_forgotten_after_its_time(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    desk.tokens(0, finish_reason=FinishReason.STOP)
    desk.commit()
    desk.sweep(29 * NS_PER_S)
    assert len(desk.core.state.ended) == 1
    desk.sweep(2 * NS_PER_S)
    assert len(desk.core.state.ended) == 0


def test_an_answer_of_offline_work_is_kept_until_its_client_has_it(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.accept(priority=-10)
    desk.tokens(0, finish_reason=FinishReason.STOP)
    desk.commit()
    desk.sweep(1800 * NS_PER_S)
    assert "r1" in desk.core.state.ended, "its queue may be dead and come back"
    cancellation = CancelRequest(request_id="r1")
    desk.tell(CancelReceived(cancellation=cancellation, cause_id="r1"))
    assert len(desk.core.state.ended) == 0
    assert desk.core.state.writer.oldest_retained() is None


def test_an_answer_of_offline_work_that_nobody_fetches_is_forgotten_in_the_end(
    a_desk: ADesk,
) -> None:
    desk = a_desk("w1")
    desk.accept(priority=-10)
    desk.tokens(0, finish_reason=FinishReason.STOP)
    desk.commit()
    desk.sweep(3601 * NS_PER_S)
    assert len(desk.core.state.ended) == 0


# Dispatches that are lost, workers that refuse, die or come back.


def test_an_unanswered_dispatch_is_repeated_and_an_answered_one_is_not(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    desk.sweep(400 * NS_PER_MS)
    (again,) = desk.sent_to("w1")
    assert isinstance(again, StartSession)
    started(desk)
    desk.sweep(400 * NS_PER_MS)
    assert not desk.sent_to("w1")


def test_a_silent_session_is_asked_after(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    started(desk)
    desk.sweep(NS_PER_S)
    assert receipts(desk) == [(0, True)]


def test_a_dead_workers_session_goes_on_elsewhere_from_its_last_token(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk, "w1", "w2")
    desk.tokens(0, 2)
    desk.commit()
    for _ in range(9):
        desk.worker_reports("w2")
        desk.echo()
    assert not desk.all(AppendJournal)
    desk.echo()
    assert not [m for m in desk.sent_to("w2") if isinstance(m, StartSession)]
    (record,) = desk.commit()
    assert record == SessionDispatched(request_id="r1", session_epoch=2, worker_id="w2")
    (start,) = desk.sent_to("w2")
    assert start.session_epoch == 2
    assert start.generated_token_ids == (100, 101)


def test_a_worker_nobody_listens_for_is_dead_after_two_reports(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk, "w1", "w2")
    desk.tell(PeerUnreachable(peer_id="w1", cause_id="t"))
    desk.worker_reports("w2")
    desk.echo(2)
    assert desk.all(AppendJournal)
    assert desk.core.state.counters.workers_lost == 1


def test_tokens_of_an_older_epoch_are_dropped_and_their_sender_told_to_stop(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk, "w1", "w2")
    desk.tell(PeerUnreachable(peer_id="w1", cause_id="t"))
    desk.worker_reports("w2")
    desk.echo(2)
    desk.commit()
    desk.tokens(0, session_epoch=1, worker_id="w1")
    assert not desk.all(AppendJournal)
    assert desk.sent_to("w1") == [EndSession(request_id="r1", session_epoch=1)]
    assert desk.core.state.counters.stale_dropped == 1


def test_tokens_of_a_session_nobody_knows_are_told_to_stop(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.tokens(0, request_id="ghost")
    assert desk.sent_to("w1") == [EndSession(request_id="ghost", session_epoch=1)]


def test_without_any_worker_a_session_waits_for_the_next(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    desk.echo(10)
    assert not desk.all(AppendJournal)
    desk.worker_reports("w3")
    (record,) = desk.commit()
    assert record == SessionDispatched(request_id="r1", session_epoch=2, worker_id="w3")


def test_a_full_worker_is_avoided_for_another_at_once(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk, "w1", "w2")
    refuse(desk, RefuseReason.FULL)
    (record,) = desk.commit()
    assert record.worker_id == "w2"


def test_the_only_worker_being_full_is_tried_again_by_the_sweep(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    refuse(desk, RefuseReason.FULL)
    assert not desk.all(AppendJournal)
    desk.sweep()
    assert desk.all(AppendJournal)


def test_a_request_the_worker_calls_invalid_fails(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    refuse(desk, RefuseReason.INVALID)
    (record,) = desk.commit()
    assert isinstance(record, SessionFailed)
    assert record.reason is FailReason.REFUSED


def test_a_refusal_of_an_older_epoch_changes_nothing(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk)
    refuse(desk, RefuseReason.UNKNOWN_SESSION)
    desk.commit()
    refuse(desk, RefuseReason.UNKNOWN_SESSION, session_epoch=1)
    assert not desk.commands


def test_a_request_that_kills_worker_after_worker_is_given_up(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk, "w1", strikes_max=2)
    refuse(desk, RefuseReason.ENGINE_ERROR)
    desk.commit()
    refuse(desk, RefuseReason.ENGINE_ERROR, session_epoch=2)
    (record,) = desk.commit()
    assert isinstance(record, SessionFailed)
    assert record.reason is FailReason.WORKERS_DIED


def test_progress_takes_the_strikes_back(a_desk: ADesk) -> None:
    desk = an_accepted(a_desk, "w1", strikes_max=2)
    refuse(desk, RefuseReason.ENGINE_ERROR)
    desk.commit()
    desk.tokens(0, session_epoch=2)
    desk.commit()
    refuse(desk, RefuseReason.ENGINE_ERROR, session_epoch=2)
    (record,) = desk.commit()
    assert isinstance(record, SessionDispatched)


def test_a_worker_that_caches_the_prompt_is_preferred(a_desk: ADesk) -> None:
    from libs.engine.prefix_hashes import prefix_block_hashes

    prompt = tuple(range(64))
    hashes = prefix_block_hashes(prompt, block_tokens=16, salt="")
    desk = a_desk("w1")
    desk.worker_reports("w2", prefix_hashes=tuple(hashes))
    desk.accept(prompt_token_ids=prompt)
    assert desk.sent_to("w2")


def test_the_less_loaded_worker_is_preferred(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.worker_reports("w1", sessions_running=4)
    desk.worker_reports("w2", sessions_running=1)
    desk.accept()
    assert desk.sent_to("w2")


def test_a_draining_worker_gets_nothing_new(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.worker_reports("w1", is_draining=True)
    desk.worker_reports("w2", sessions_running=9)
    desk.accept()
    assert {command.worker_id for command in desk.all(SendToWorker)} == {"w2"}


def test_scores_go_to_a_client_in_messages_of_bounded_size(a_desk: ADesk) -> None:
    scored = ScoredToken(token_id=1, text="a", logprob=-1.0)
    plain = TokenLogprobs(chosen=scored, best=(scored,))
    first = TokenLogprobs(chosen=scored, best=(scored,), prompt=(plain,) * 3)
    desk = a_desk("w1", scores_bytes_max=2 * 96 * 4)
    sampling = SamplingParameters(logprobs=1, prompt_logprobs=True)
    desk.accept(sampling=sampling)
    desk.tokens(0, 10, logprobs=(first, *[plain] * 9))
    desk.commit()
    sent = [message for message in desk.replies() if isinstance(message, TokensGenerated)]
    assert [message.first_index for message in sent] == [0, 1, 5, 9]
    assert [len(message.logprobs) for message in sent] == [1, 4, 4, 1]
    assert sent[0].logprobs[0].prompt == (plain,) * 3

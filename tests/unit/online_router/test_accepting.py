from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.journal import JournalClosed, SessionFailed, SessionOpened
from libs.contracts.online import (
    CancelRequest,
    FailReason,
    RejectReason,
    RequestAccepted,
    RequestFailed,
    RequestRejected,
    SamplingParameters,
    TokensGenerated,
)
from libs.contracts.sessions import EndSession, StartSession
from libs.contracts.wire import Encoding
from libs.kernel.core import TimerFired
from libs.kernel.units import NS_PER_S
from services.online_router.commands import (
    AppendJournal,
    ClaimRequest,
    ForwardSubmission,
    ReadJournalTail,
    SendToWorker,
    Tokenize,
)
from services.online_router.events import (
    CancelReceived,
    ClaimHeld,
    ClaimUnavailable,
    JournalAppendFailed,
    JournalTailRead,
    PromptRefused,
    SubmissionMalformed,
)

ADesk = Callable[..., Any]


def rejection(desk: Any) -> RequestRejected:
    (message,) = desk.replies()
    assert isinstance(message, RequestRejected)
    return message


def test_nothing_is_said_and_nobody_dispatched_before_the_request_is_durable(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.submit()
    assert not desk.replies()
    desk.tokenize()
    assert not desk.replies()
    desk.make_claim()
    assert not desk.replies()
    assert not desk.all(SendToWorker)
    (opened,) = desk.commit()
    assert isinstance(opened, SessionOpened)
    assert desk.replies() == [
        RequestAccepted(request_id="r1", router_id="router-a", prompt_tokens=3)
    ]
    (start,) = desk.sent_to("w1")
    assert isinstance(start, StartSession)
    assert start.session_epoch == opened.session_epoch == 1


def test_a_request_without_a_seed_gets_one_from_its_id(a_desk: ADesk) -> None:
    seeds = []
    for request_id in ("r1", "r1", "r2"):
        desk = a_desk("w1")
        desk.accept(request_id)
        (start,) = desk.sent_to("w1")
        seeds.append(start.spec.sampling.seed)
    assert seeds[0] == seeds[1] != seeds[2]
    assert None not in seeds


def test_without_max_tokens_the_answer_may_fill_the_context(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.accept(max_tokens=None)
    (start,) = desk.sent_to("w1")
    assert start.spec.max_tokens == 256 - 3


def test_bytes_that_are_no_request_are_answered_for_good(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.tell(
        SubmissionMalformed(reply_to="inbox", encoding=Encoding.JSON, message="bad", cause_id="t")
    )
    assert rejection(desk).reason is RejectReason.MALFORMED
    assert rejection(desk).retry_after_ms is None


def test_an_unknown_model_is_rejected_for_good(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.submit(alias="gpt-9")
    assert rejection(desk).reason is RejectReason.MODEL_NOT_FOUND
    assert "gpt-9" in rejection(desk).message
    assert rejection(desk).retry_after_ms is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt_token_ids": tuple(range(300))}, RejectReason.CONTEXT_LENGTH_EXCEEDED),
        ({"max_tokens": 254}, RejectReason.CONTEXT_LENGTH_EXCEEDED),
        ({"prompt_token_ids": (1, 1000)}, RejectReason.INVALID),
    ],
)
def test_what_the_model_cannot_do_is_rejected_for_good(
    a_desk: ADesk, fields: dict[str, object], reason: RejectReason
) -> None:
    desk = a_desk("w1")
    desk.submit(**fields)
    desk.tokenize()
    assert rejection(desk).reason is reason
    assert rejection(desk).retry_after_ms is None
    assert not desk.core.state.sessions


def test_a_prompt_that_cannot_be_tokenised_is_rejected_with_the_reason(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.submit()
    desk.tell(
        PromptRefused(
            op_id=desk.only(Tokenize).op_id,
            reason=RejectReason.INVALID,
            message="no chat template",
            cause_id="t",
        )
    )
    assert rejection(desk).message == "no chat template"


def test_a_record_over_its_bound_is_too_large(a_desk: ADesk) -> None:
    desk = a_desk("w1", record_bytes_max=600, batch_bytes_max=600)
    desk.submit(prompt_token_ids=tuple(range(100)))
    desk.tokenize()
    assert rejection(desk).reason is RejectReason.TOO_LARGE


def test_a_prompt_whose_scores_fill_more_than_a_message_is_too_large(a_desk: ADesk) -> None:
    fits = 3 * 96 * 10
    sampling = SamplingParameters(logprobs=2, prompt_logprobs=True)
    for prompt_tokens, is_refused in ((10, False), (11, True)):
        desk = a_desk("w1", scores_bytes_max=fits)
        desk.submit(prompt_token_ids=tuple(range(prompt_tokens)), sampling=sampling)
        desk.tokenize()
        assert bool(desk.replies()) == is_refused
    assert rejection(desk).reason is RejectReason.TOO_LARGE
    assert rejection(desk).parameter == "logprobs"


def test_a_full_journal_refuses_who_has_no_promise_and_keeps_the_rest(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.accept("r1")
    desk.tokens(0, 2)
    tokens = desk.only(AppendJournal)
    desk.submit("r2")
    desk.tokenize()
    desk.make_claim()
    desk.tell(JournalAppendFailed(op_id=tokens.op_id, is_full=True, cause_id="t"))
    assert rejection(desk).request_id == "r2"
    assert rejection(desk).reason is RejectReason.UNAVAILABLE
    assert rejection(desk).retry_after_ms
    assert sorted(desk.core.state.sessions) == ["r1"]
    desk.tell(TimerFired(key="append", cause_id="t"))
    again = desk.only(AppendJournal)
    assert again.records == tokens.records
    desk.commit()
    assert any(isinstance(message, TokensGenerated) for message in desk.replies())


def test_a_full_journal_with_nothing_else_to_write_is_tried_by_the_next_request(
    a_desk: ADesk,
) -> None:
    desk = a_desk("w1")
    for name in ("r1", "r2"):
        desk.submit(name)
        desk.tokenize()
        desk.make_claim()
        full = desk.only(AppendJournal)
        desk.tell(JournalAppendFailed(op_id=full.op_id, is_full=True, cause_id="t"))
        assert rejection(desk).request_id == name
    assert not desk.core.state.sessions
    assert not any(desk.core.state.placed.values())
    desk.accept("r3")
    assert "r3" in desk.core.state.sessions


def test_without_a_worker_a_client_is_told_to_come_back(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.submit()
    assert rejection(desk).reason is RejectReason.NO_WORKER
    assert rejection(desk).retry_after_ms


def test_at_its_bound_a_router_is_overloaded(a_desk: ADesk) -> None:
    desk = a_desk("w1", sessions_max=1)
    desk.accept("r1")
    desk.submit("r2")
    assert rejection(desk).reason is RejectReason.OVERLOADED
    assert rejection(desk).retry_after_ms


def test_while_the_journal_does_not_answer_nothing_is_admitted(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.submit("r1")
    desk.tokenize()
    desk.make_claim()
    append = desk.only(AppendJournal)
    desk.tell(JournalAppendFailed(op_id=append.op_id, cause_id="t"))
    desk.submit("r2")
    assert rejection(desk).reason is RejectReason.UNAVAILABLE


def test_a_repeat_before_acceptance_starts_nothing_twice(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.submit()
    tokenize = desk.only(Tokenize)
    desk.submit()
    assert not desk.commands
    assert tokenize.op_id == desk.core.state.sessions["r1"].op_id


def test_an_unanswered_claim_lets_the_client_try_again(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.submit()
    desk.tokenize()
    desk.tell(ClaimUnavailable(op_id=desk.only(ClaimRequest).op_id, cause_id="t"))
    assert rejection(desk).reason is RejectReason.UNAVAILABLE
    assert not desk.core.state.sessions


# Somebody else has the request id.


def held_by(desk: Any, journal_id: str) -> None:
    desk.submit()
    desk.tokenize()
    op_id = desk.only(ClaimRequest).op_id
    desk.tell(ClaimHeld(op_id=op_id, journal_id=journal_id, revision=5, cause_id="t"))


def test_a_repeat_that_another_living_router_owns_is_handed_over(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.hear_router("router-b")
    held_by(desk, "router-b-1")
    forward = desk.only(ForwardSubmission)
    assert (forward.router_id, forward.reply_to) == ("router-b", "inbox.r1")
    assert not desk.core.state.sessions


def test_the_claim_of_a_dead_router_whose_journal_is_open_means_recovering(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    held_by(desk, "router-z-1")
    read = desk.only(ReadJournalTail)
    desk.tell(
        JournalTailRead(
            op_id=read.op_id, sequence=9, message_id="router-z-1:4", records=(), cause_id="t"
        )
    )
    assert rejection(desk).reason is RejectReason.RECOVERING
    assert rejection(desk).retry_after_ms


def test_the_claim_of_a_closed_journal_is_replaced(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    held_by(desk, "router-z-1")
    read = desk.only(ReadJournalTail)
    closed = JournalClosed(by_journal_id="router-y-1")
    desk.tell(
        JournalTailRead(
            op_id=read.op_id, sequence=9, message_id="x", records=(closed,), cause_id="t"
        )
    )
    assert desk.only(ClaimRequest).revision == 5
    desk.make_claim()
    desk.commit()
    assert isinstance(desk.replies()[0], RequestAccepted)


# The other ways to end.


def cancel(desk: Any, request_id: str = "r1") -> None:
    cancellation = CancelRequest(request_id=request_id)
    desk.tell(CancelReceived(cancellation=cancellation, cause_id=request_id))


def test_a_cancelled_session_is_ended_on_its_worker_and_once_durable_for_its_client(
    a_desk: ADesk,
) -> None:
    desk = a_desk("w1")
    desk.accept()
    cancel(desk)
    assert desk.sent_to("w1") == [EndSession(request_id="r1", session_epoch=1)]
    assert not desk.replies()
    (record,) = desk.commit()
    assert isinstance(record, SessionFailed)
    (message,) = desk.replies()
    assert isinstance(message, RequestFailed)
    assert message.reason is FailReason.CANCELLED
    assert not desk.core.state.sessions


def test_a_request_cancelled_before_acceptance_leaves_nothing_behind(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.submit()
    cancel(desk)
    assert not desk.core.state.sessions
    assert not desk.all(AppendJournal)


def test_a_cancellation_between_claim_and_journal_still_ends_the_request(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.submit()
    desk.tokenize()
    desk.make_claim()
    append = desk.only(AppendJournal)
    cancel(desk)
    desk.commands = [append]
    desk.commit()
    desk.commit()
    assert isinstance(desk.replies()[-1], RequestFailed)
    assert not desk.core.state.sessions


def test_a_request_expires_at_its_time_and_not_before(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.accept(expires_after_ms=2_000)
    desk.sweep(NS_PER_S)
    assert not desk.all(AppendJournal)
    desk.sweep(NS_PER_S)
    desk.commit()
    (message,) = desk.replies()
    assert isinstance(message, RequestFailed)
    assert message.reason is FailReason.EXPIRED


def test_a_submission_without_a_reply_subject_is_counted_and_dropped(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.tell(SubmissionMalformed(reply_to="", encoding=Encoding.JSON, message="x", cause_id="t"))
    assert not desk.commands
    assert desk.core.state.counters.unanswerable == 1


@pytest.mark.parametrize(
    ("sampling", "parameter"),
    [
        ({"logit_bias": {10**6: 1.0}}, "logit_bias"),
        ({"stop_token_ids": (10**6,)}, "stop_token_ids"),
    ],
)
def test_a_token_that_the_model_lacks_is_refused_by_the_name_of_its_field(
    a_desk: ADesk, sampling: dict[str, Any], parameter: str
) -> None:
    desk = a_desk("w1")
    desk.submit(sampling=sampling)
    desk.tokenize()
    refusal = rejection(desk)
    assert (refusal.reason, refusal.parameter) == (RejectReason.INVALID, parameter)

"""The reader's core, one event at a time under a clock moved by hand."""

from collections.abc import Sequence

import pytest

from libs.client.reader import TRANSITIONS, Phase, StreamReader
from libs.client.reader_events import (
    AnswerReceived,
    BeginAnswer,
    Cancel,
    DeliverTokens,
    EndStream,
    GaveUp,
    Left,
    Outcome,
    ReaderCommand,
    ReaderEvent,
    ReaderOptions,
    StreamLeft,
    StreamOpened,
    SubmissionUnheard,
    Submit,
    TokensTaken,
)
from libs.contracts.online import (
    FailReason,
    FinishReason,
    RejectReason,
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    RequestRejected,
    ScoredToken,
    TokenLogprobs,
    TokensGenerated,
)
from libs.contracts.online import ToClient as Answer
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.units import NS_PER_MS, NS_PER_S

REQUEST_ID = "request-1"
FIRED = TimerFired(key="reader", cause_id=REQUEST_ID)


class Desk:
    """A reader with a hand-moved clock; fires its timer when the clock passes it."""

    def __init__(self, **options: object) -> None:
        self.reader = StreamReader(REQUEST_ID, ReaderOptions(**options))  # type: ignore[arg-type]
        self.now_ns = 0
        self.timer_at_ns: int | None = None
        self.log: list[ReaderCommand] = []

    def tell(self, event: ReaderEvent) -> list[ReaderCommand]:
        commands = self.reader.handle(event, now_ns=self.now_ns)
        self.reader.check_invariants()
        for command in commands:
            if isinstance(command, SetTimer):
                self.timer_at_ns = self.now_ns + command.after_ns
        told = [c for c in commands if not isinstance(c, SetTimer)]
        self.log += told
        return told

    def hear(self, answer: Answer) -> list[ReaderCommand]:
        return self.tell(AnswerReceived(answer=answer))

    def wait(self, duration_ns: int) -> list[ReaderCommand]:
        until_ns = self.now_ns + duration_ns
        told: list[ReaderCommand] = []
        while self.timer_at_ns is not None and self.timer_at_ns <= until_ns:
            self.now_ns, self.timer_at_ns = self.timer_at_ns, None
            told += self.tell(FIRED)
        self.now_ns = until_ns
        return told


def an_open_desk(**options: object) -> Desk:
    desk = Desk(**options)
    assert desk.tell(StreamOpened()) == [Submit(tokens_received=0)]
    return desk


def a_streaming_desk(**options: object) -> Desk:
    desk = an_open_desk(**options)
    desk.hear(accepted())
    return desk


def accepted() -> RequestAccepted:
    return RequestAccepted(request_id=REQUEST_ID, router_id="router-1", prompt_tokens=3)


def tokens(*indices: int, request_id: str = REQUEST_ID) -> TokensGenerated:
    return TokensGenerated(
        request_id=request_id,
        first_index=indices[0],
        token_ids=tuple(100 + i for i in indices),
        texts=tuple(f"t{i}" for i in indices),
    )


def scored(*indices: int) -> TokensGenerated:
    chosen = [ScoredToken(token_id=100 + i, text=f"t{i}", logprob=-1.0) for i in indices]
    logprobs = tuple(TokenLogprobs(chosen=token) for token in chosen)
    return tokens(*indices).model_copy(update={"logprobs": logprobs})


def finished(completion_tokens: int) -> RequestFinished:
    return RequestFinished(
        request_id=REQUEST_ID,
        finish_reason=FinishReason.STOP,
        prompt_tokens=3,
        completion_tokens=completion_tokens,
    )


def rejected(reason: RejectReason, retry_after_ms: int | None = None) -> RequestRejected:
    return RequestRejected(
        request_id=REQUEST_ID, reason=reason, message="no", retry_after_ms=retry_after_ms
    )


def delivered(commands: Sequence[ReaderCommand]) -> list[int]:
    return [i for c in commands if isinstance(c, DeliverTokens) for i in c.token_ids]


def outcomes(commands: Sequence[ReaderCommand]) -> list[Outcome]:
    return [c.outcome for c in commands if isinstance(c, EndStream)]


def test_an_undisturbed_stream_is_delivered_and_ends_once() -> None:
    desk = an_open_desk()
    assert desk.hear(accepted()) == [BeginAnswer(prompt_tokens=3)]
    assert delivered(desk.hear(tokens(0))) == [100]
    assert delivered(desk.hear(tokens(1, 2))) == [101, 102]
    assert outcomes(desk.hear(finished(3))) == [finished(3)]
    assert desk.hear(finished(3)) == []
    assert desk.wait(600 * NS_PER_S) == []
    assert desk.reader.phase is Phase.ENDED


def test_tokens_that_are_known_are_dropped_and_an_overlap_gives_only_the_new_ones() -> None:
    desk = a_streaming_desk()
    desk.hear(tokens(0, 1))
    assert desk.hear(tokens(0, 1)) == []
    assert delivered(desk.hear(tokens(1, 2, 3))) == [102, 103]


def test_a_gap_is_never_crossed_and_the_missing_tokens_are_asked_for() -> None:
    desk = a_streaming_desk()
    desk.hear(tokens(0))
    desk.wait(300 * NS_PER_MS)
    assert desk.hear(tokens(2)) == [Submit(tokens_received=1)]
    assert desk.hear(tokens(3)) == [], "what was under way before must not ask again"
    assert delivered(desk.hear(tokens(1, 2, 3))) == [101, 102, 103]


def test_a_gap_right_after_a_submission_waits_for_its_time_and_then_asks() -> None:
    desk = a_streaming_desk(gap_repeat_after_ns=250 * NS_PER_MS)
    assert desk.hear(tokens(1)) == []
    assert desk.wait(249 * NS_PER_MS) == []
    assert desk.wait(1 * NS_PER_MS) == [Submit(tokens_received=0)]


def test_an_end_that_counts_more_tokens_than_arrived_asks_for_the_rest() -> None:
    desk = a_streaming_desk()
    desk.hear(tokens(0))
    desk.wait(1 * NS_PER_S)
    assert desk.hear(finished(3)) == [Submit(tokens_received=1)]
    assert delivered(desk.hear(tokens(1, 2))) == [101, 102]
    assert outcomes(desk.hear(finished(3))) == [finished(3)]


def test_an_end_that_counts_fewer_tokens_than_arrived_is_not_taken_for_success() -> None:
    desk = a_streaming_desk()
    desk.hear(tokens(0, 1, 2))
    [outcome] = outcomes(desk.hear(finished(2)))
    assert isinstance(outcome, GaveUp)


def test_silence_before_acceptance_repeats_the_submission_until_patience_ends() -> None:
    desk = an_open_desk(accept_repeat_after_ns=NS_PER_S, acceptance_wait_ns=5 * NS_PER_S)
    told = desk.wait(10 * NS_PER_S)
    assert told[:-2] == [Submit(tokens_received=0)] * 4
    assert told[-2] == Cancel()
    [outcome] = outcomes(told)
    assert isinstance(outcome, GaveUp)


def test_silence_after_acceptance_asks_at_growing_intervals_up_to_the_bound() -> None:
    desk = a_streaming_desk(repeat_after_ns=NS_PER_S, repeat_after_ns_max=4 * NS_PER_S)
    instants = []
    for _ in range(20):
        if desk.wait(NS_PER_S):
            instants.append(desk.now_ns // NS_PER_S)
    assert instants == [1, 3, 7, 11, 15, 19]


def test_a_new_token_makes_the_reader_attentive_again() -> None:
    desk = a_streaming_desk(repeat_after_ns=NS_PER_S, repeat_after_ns_max=4 * NS_PER_S)
    desk.wait(10 * NS_PER_S)
    desk.hear(tokens(0))
    assert desk.wait(NS_PER_S - 1) == []
    assert desk.wait(1) == [Submit(tokens_received=1)]


def test_an_owner_who_only_repeats_its_acceptance_is_waited_for() -> None:
    desk = a_streaming_desk(silence_max_ns=20 * NS_PER_S)
    for _ in range(60):
        desk.wait(5 * NS_PER_S)
        desk.hear(accepted())
    assert desk.reader.phase is Phase.STREAMING
    assert BeginAnswer(prompt_tokens=3) not in desk.log[2:]


def test_an_owner_silent_for_too_long_ends_the_stream_and_cancels_it() -> None:
    desk = a_streaming_desk(silence_max_ns=20 * NS_PER_S)
    told = desk.wait(21 * NS_PER_S)
    assert told[-2] == Cancel()
    [outcome] = outcomes(told)
    assert isinstance(outcome, GaveUp)


def test_a_rejection_without_retry_is_final() -> None:
    desk = an_open_desk()
    rejection = rejected(RejectReason.INVALID)
    assert desk.hear(rejection) == [EndStream(outcome=rejection)]


def test_a_rejection_with_retry_is_tried_again_after_that_time() -> None:
    desk = an_open_desk()
    assert desk.hear(rejected(RejectReason.OVERLOADED, retry_after_ms=400)) == []
    assert desk.wait(399 * NS_PER_MS) == []
    assert desk.wait(1 * NS_PER_MS) == [Submit(tokens_received=0)]
    assert desk.hear(accepted()) == [BeginAnswer(prompt_tokens=3)]


def test_a_rejection_that_asks_to_wait_beyond_patience_ends_at_once() -> None:
    desk = an_open_desk(acceptance_wait_ns=5 * NS_PER_S)
    rejection = rejected(RejectReason.OVERLOADED, retry_after_ms=6_000)
    assert outcomes(desk.hear(rejection)) == [rejection]


def test_a_reason_that_is_not_to_be_retried_ends_at_once() -> None:
    desk = an_open_desk(reasons_not_retried=frozenset({RejectReason.OVERLOADED}))
    rejection = rejected(RejectReason.OVERLOADED, retry_after_ms=100)
    assert outcomes(desk.hear(rejection)) == [rejection]


def test_patience_that_ends_amid_rejections_tells_the_last_rejection() -> None:
    desk = an_open_desk(acceptance_wait_ns=1 * NS_PER_S, accept_repeat_after_ns=5 * NS_PER_S)
    rejection = rejected(RejectReason.NO_WORKER, retry_after_ms=300)
    desk.hear(rejection)
    assert outcomes(desk.wait(2 * NS_PER_S)) == [rejection]


@pytest.mark.parametrize("reason", [RejectReason.RECOVERING, RejectReason.OVERLOADED])
def test_a_transient_rejection_after_acceptance_changes_nothing(reason: RejectReason) -> None:
    desk = a_streaming_desk()
    assert desk.hear(rejected(reason, retry_after_ms=100)) == []
    assert desk.hear(rejected(reason)) == []
    assert delivered(desk.hear(tokens(0))) == [100]


def test_tokens_stand_for_a_lost_acceptance() -> None:
    desk = an_open_desk()
    told = desk.hear(tokens(0))
    assert told[0] == BeginAnswer(prompt_tokens=None)
    assert delivered(told) == [100]


def test_nobody_listening_is_tried_again_soon_and_at_last_told() -> None:
    desk = an_open_desk(unheard_repeat_after_ns=250 * NS_PER_MS, acceptance_wait_ns=NS_PER_S)
    assert desk.tell(SubmissionUnheard(explanation="no router listens")) == []
    assert desk.wait(250 * NS_PER_MS) == [Submit(tokens_received=0)]
    desk.tell(SubmissionUnheard(explanation="no router listens"))
    assert desk.wait(250 * NS_PER_MS) == [Submit(tokens_received=0)]
    desk.tell(SubmissionUnheard(explanation="no router listens"))
    [outcome] = outcomes(desk.wait(NS_PER_S))
    assert outcome == GaveUp(explanation="no router listens")


def test_a_broker_that_is_away_for_eight_seconds_costs_an_accepted_stream_only_time() -> None:
    desk = a_streaming_desk()
    desk.hear(tokens(0))
    for _ in range(32):
        for command in desk.wait(250 * NS_PER_MS):
            assert command == Submit(tokens_received=1)
            desk.tell(SubmissionUnheard(explanation="the broker is away"))
    told = desk.wait(250 * NS_PER_MS)
    assert told == [Submit(tokens_received=1)]
    assert delivered(desk.hear(tokens(1))) == [101]


def test_a_failure_is_told_even_if_tokens_are_missing() -> None:
    desk = a_streaming_desk()
    failed = RequestFailed(request_id=REQUEST_ID, reason=FailReason.EXPIRED, message="late")
    assert outcomes(desk.hear(failed)) == [failed]


def test_leaving_cancels_the_request() -> None:
    desk = a_streaming_desk()
    assert desk.tell(StreamLeft()) == [Cancel(), EndStream(outcome=Left())]


def test_leaving_before_anything_was_sent_cancels_nothing() -> None:
    assert Desk().tell(StreamLeft()) == [EndStream(outcome=Left())]


def test_another_requests_messages_are_ignored_and_counted() -> None:
    desk = a_streaming_desk()
    assert desk.hear(tokens(0, request_id="request-2")) == []
    assert desk.reader.answers_ignored == 1


def test_tokens_without_their_texts_are_ignored_and_counted() -> None:
    desk = a_streaming_desk()
    torn = tokens(0, 1).model_copy(update={"texts": ("t0",)})
    assert desk.hear(torn) == []
    assert desk.reader.answers_ignored == 1


def test_log_probabilities_stay_with_their_tokens_where_messages_overlap() -> None:
    desk = a_streaming_desk()
    desk.hear(scored(0, 1))
    [delivery] = [c for c in desk.hear(scored(1, 2, 3)) if isinstance(c, DeliverTokens)]
    assert [item.chosen.token_id for item in delivery.logprobs] == list(delivery.token_ids)


def test_log_probabilities_for_some_of_the_tokens_are_ignored_and_counted() -> None:
    desk = a_streaming_desk()
    broken = scored(0, 1).model_copy(update={"logprobs": scored(0).logprobs})
    assert delivered(desk.hear(broken)) == []
    assert desk.reader.answers_ignored == 1


def test_a_submission_nobody_could_read_is_refused() -> None:
    desk = an_open_desk()
    rejection = RequestRejected(reason=RejectReason.MALFORMED, message="no")
    assert outcomes(desk.hear(rejection)) == [rejection]


def test_a_slow_consumer_loses_nothing_and_is_not_flooded_with_resends() -> None:
    desk = a_streaming_desk(tokens_buffered_max=4)
    assert delivered(desk.hear(tokens(0, 1, 2))) == [100, 101, 102]
    assert delivered(desk.hear(tokens(3, 4, 5))) == [103]
    assert desk.hear(tokens(6)) == []
    assert desk.hear(finished(7)) == []
    assert desk.wait(600 * NS_PER_S) == [], "while there is no room, nothing is asked for"
    assert desk.tell(TokensTaken(next_index=1)) == []
    assert desk.tell(TokensTaken(next_index=2)) == [Submit(tokens_received=4)]
    desk.tell(TokensTaken(next_index=4))
    assert delivered(desk.hear(tokens(4, 5, 6))) == [104, 105, 106]
    assert outcomes(desk.hear(finished(7))) == [finished(7)]


def test_a_reader_that_ended_stays_ended_in_the_table() -> None:
    assert TRANSITIONS[Phase.ENDED] == {}
    for phase, moves in TRANSITIONS.items():
        assert phase not in (Phase.ENDED,) or not moves
        assert Phase.NEW not in moves.values(), "a stream is opened once"

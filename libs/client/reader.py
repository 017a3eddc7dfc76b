"""Reading one answer exactly once over a bus that may lose, double and reorder.

    SUBMITTING --accepted--> STREAMING --finished, nothing missing--> ENDED
        |  ^                  |      ^
        v  | time             +------+  gap or silence: submit again from tokens_received
    BACKING_OFF  (rejected for now, or nobody listens)

Repeating the submission is the one remedy for everything: the owner answers it with the acceptance
and whatever lies past `tokens_received`. The reader never looks past a gap, drops what it has, and
asks again, so that each token comes out once and in order whatever happened on the way.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, assert_never

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
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    RequestRejected,
    TokensGenerated,
)
from libs.contracts.online import ToClient as Answer
from libs.kernel.core import SetTimer, TimerFired, present, require
from libs.kernel.units import NS_PER_MS

READER_TIMER: Final = "reader"


class Phase(StrEnum):
    """Where a stream stands."""

    NEW = "new"
    SUBMITTING = "submitting"
    BACKING_OFF = "backing_off"
    STREAMING = "streaming"
    ENDED = "ended"


class Sign(StrEnum):
    """What an event means for the stream, whatever its details."""

    OPENED = "opened"
    RESUBMITTED = "resubmitted"
    OWNER_HEARD = "owner_heard"
    PUT_OFF = "put_off"
    REFUSED = "refused"
    COMPLETE = "complete"
    FAILED = "failed"
    LOST_PATIENCE = "lost_patience"
    LEFT = "left"


_ENDS: Final[Mapping[Sign, Phase]] = {
    Sign.REFUSED: Phase.ENDED,
    Sign.COMPLETE: Phase.ENDED,
    Sign.FAILED: Phase.ENDED,
    Sign.LOST_PATIENCE: Phase.ENDED,
    Sign.LEFT: Phase.ENDED,
}

TRANSITIONS: Final[Mapping[Phase, Mapping[Sign, Phase]]] = {
    Phase.NEW: {Sign.OPENED: Phase.SUBMITTING, Sign.LEFT: Phase.ENDED},
    Phase.SUBMITTING: {
        Sign.RESUBMITTED: Phase.SUBMITTING,
        Sign.OWNER_HEARD: Phase.STREAMING,
        Sign.PUT_OFF: Phase.BACKING_OFF,
        **_ENDS,
    },
    Phase.BACKING_OFF: {
        Sign.RESUBMITTED: Phase.SUBMITTING,
        Sign.OWNER_HEARD: Phase.STREAMING,
        Sign.PUT_OFF: Phase.BACKING_OFF,
        **_ENDS,
    },
    Phase.STREAMING: {
        Sign.RESUBMITTED: Phase.STREAMING,
        Sign.OWNER_HEARD: Phase.STREAMING,
        **_ENDS,
    },
    Phase.ENDED: {},
}


class StreamReader:
    """The core of one stream: events in, commands out; delivers each token once and ends once."""

    def __init__(self, request_id: str, options: ReaderOptions) -> None:
        self._request_id = request_id
        self._options = options
        self._phase = Phase.NEW
        self._now_ns = 0
        self._commands: list[ReaderCommand] = []
        self._tokens_received = 0
        self._tokens_taken = 0
        self._is_held_back = False
        self._submissions = 0
        self._submitted_at_ns = 0
        self._repeat_after_ns = options.repeat_after_ns
        self._repeat_at_ns: int | None = None
        self._give_up_at_ns: int | None = None
        self._armed_at_ns: int | None = None
        self._setback: RequestRejected | str = "no router answered"
        self.answers_ignored = 0
        """Messages that were malformed or meant for another request."""

    @property
    def phase(self) -> Phase:
        """Where the stream stands."""
        return self._phase

    @property
    def tokens_received(self) -> int:
        """How many tokens have been delivered: the index of the next one."""
        return self._tokens_received

    @property
    def submissions(self) -> int:
        """How often the submission was published; more than one means that something was lost."""
        return self._submissions

    def handle(self, event: ReaderEvent, *, now_ns: int) -> Sequence[ReaderCommand]:
        """Apply one event and return what to do, in order. After the end it returns nothing."""
        if self._phase is Phase.ENDED or not self._is_expected(event):
            return ()
        self._now_ns = now_ns
        match event:
            case AnswerReceived():
                self._answer_received(event.answer)
            case TokensTaken():
                self._taken(event.next_index)
            case TimerFired():
                self._timer_fired()
            case StreamOpened():
                self._move(Sign.OPENED)
                self._give_up_at_ns = now_ns + self._options.acceptance_wait_ns
                self._submit()
            case SubmissionUnheard():
                self._unheard(event.explanation)
            case StreamLeft():
                self._end(Sign.LEFT, Left(), is_cancelled=self._submissions > 0)
            case _:
                assert_never(event)
        self._arm_timer()
        commands, self._commands = self._commands, []
        return commands

    def _is_expected(self, event: ReaderEvent) -> bool:
        """Before it is opened a stream hears nothing: an answer then belongs to somebody else."""
        return self._phase is not Phase.NEW or isinstance(event, StreamOpened | StreamLeft)

    def check_invariants(self) -> None:
        """What must hold between any two events; raises InvariantViolation."""
        require(self._tokens_taken <= self._tokens_received, "taken before it was received")
        buffered = self._tokens_received - self._tokens_taken
        require(buffered <= self._options.tokens_buffered_max, "the buffer is over its bound")
        is_live = self._phase not in (Phase.NEW, Phase.ENDED)
        if is_live and not self._is_held_back:
            require(self._armed_at_ns is not None, "a live stream without a timer could hang")
            require(self._give_up_at_ns is not None, "a live stream that would never give up")

    # ------------------------------------------------------------------ answers

    def _answer_received(self, answer: Answer) -> None:
        if answer.request_id != self._request_id and not _is_unreadable(answer):
            self.answers_ignored += 1
            return
        match answer:
            case TokensGenerated():
                self._tokens_generated(answer)
            case RequestAccepted():
                self._heard_owner(prompt_tokens=answer.prompt_tokens)
            case RequestFinished():
                self._finished(answer)
            case RequestFailed():
                self._end(Sign.FAILED, answer)
            case RequestRejected():
                self._rejected(answer)
            case _:
                assert_never(answer)

    def _tokens_generated(self, answer: TokensGenerated) -> None:
        if not _is_consistent(answer):
            self.answers_ignored += 1
            return
        self._heard_owner(prompt_tokens=None)
        if self._is_held_back:
            return
        if answer.first_index > self._tokens_received:
            self._ask_for_missing()
            return
        known = self._tokens_received - answer.first_index
        room = self._tokens_taken + self._options.tokens_buffered_max - self._tokens_received
        token_ids = answer.token_ids[known : known + room]
        if token_ids:
            self._commands.append(
                DeliverTokens(
                    first_index=self._tokens_received,
                    token_ids=token_ids,
                    texts=answer.texts[known : known + room],
                    logprobs=answer.logprobs[known : known + room],
                )
            )
            self._tokens_received += len(token_ids)
            self._repeat_after_ns = self._options.repeat_after_ns
            self._repeat_at_ns = self._now_ns + self._repeat_after_ns
        if len(answer.token_ids) > known + room:
            self._hold_back()

    def _finished(self, answer: RequestFinished) -> None:
        if answer.completion_tokens > self._tokens_received:
            self._heard_owner(prompt_tokens=answer.prompt_tokens)
            if not self._is_held_back:
                self._ask_for_missing()
        elif answer.completion_tokens < self._tokens_received:
            explanation = "the end of the answer contradicts the tokens that came before"
            self._end(Sign.LOST_PATIENCE, GaveUp(explanation=explanation))
        else:
            self._heard_owner(prompt_tokens=answer.prompt_tokens)
            self._end(Sign.COMPLETE, answer)

    def _rejected(self, rejection: RequestRejected) -> None:
        if self._phase is Phase.STREAMING:
            return  # another router does not know (yet) that the request is accepted
        self._setback = rejection
        if self._is_final(rejection):
            self._end(Sign.REFUSED, rejection, is_cancelled=self._submissions > 1)
            return
        self._move(Sign.PUT_OFF)
        self._repeat_at_ns = self._now_ns + (rejection.retry_after_ms or 0) * NS_PER_MS
        if self._repeat_at_ns <= self._now_ns:
            self._repeat_at_ns = self._now_ns + self._options.unheard_repeat_after_ns

    def _is_final(self, rejection: RequestRejected) -> bool:
        if rejection.retry_after_ms is None:
            return True
        if rejection.reason in self._options.reasons_not_retried:
            return True
        retry_at_ns = self._now_ns + rejection.retry_after_ms * NS_PER_MS
        return self._give_up_at_ns is not None and retry_at_ns >= self._give_up_at_ns

    def _heard_owner(self, *, prompt_tokens: int | None) -> None:
        if self._phase is not Phase.STREAMING:
            self._commands.append(BeginAnswer(prompt_tokens=prompt_tokens))
            self._repeat_at_ns = self._now_ns + self._repeat_after_ns
        self._move(Sign.OWNER_HEARD)
        if not self._is_held_back:
            self._give_up_at_ns = self._now_ns + self._options.silence_max_ns

    # ------------------------------------------------------------------ asking again

    def _submit(self) -> None:
        self._submissions += 1
        self._submitted_at_ns = self._now_ns
        is_accepted = self._phase is Phase.STREAMING
        wait_ns = self._repeat_after_ns if is_accepted else self._options.accept_repeat_after_ns
        self._repeat_at_ns = self._now_ns + wait_ns
        self._commands.append(Submit(tokens_received=self._tokens_received))

    def _ask_for_missing(self) -> None:
        """Submit again, now or as soon as the last submission has had its time."""
        ask_at_ns = self._submitted_at_ns + self._options.gap_repeat_after_ns
        if ask_at_ns <= self._now_ns:
            self._submit()
        elif self._repeat_at_ns is None or ask_at_ns < self._repeat_at_ns:
            self._repeat_at_ns = ask_at_ns

    def _unheard(self, explanation: str) -> None:
        if self._phase is Phase.STREAMING:
            if not self._is_held_back:
                self._repeat_at_ns = self._now_ns + self._options.unheard_repeat_after_ns
            return
        self._setback = explanation
        self._move(Sign.PUT_OFF)
        self._repeat_at_ns = self._now_ns + self._options.unheard_repeat_after_ns

    def _timer_fired(self) -> None:
        self._armed_at_ns = None
        if self._give_up_at_ns is not None and self._now_ns >= self._give_up_at_ns:
            self._lose_patience()
        elif self._repeat_at_ns is not None and self._now_ns >= self._repeat_at_ns:
            if self._phase is Phase.STREAMING:
                doubled_ns = 2 * self._repeat_after_ns
                self._repeat_after_ns = min(doubled_ns, self._options.repeat_after_ns_max)
            self._move(Sign.RESUBMITTED)
            self._submit()

    def _lose_patience(self) -> None:
        if self._phase is Phase.STREAMING:
            outcome: Outcome = GaveUp(explanation="the owner of the request fell silent")
        elif isinstance(self._setback, RequestRejected):
            outcome = self._setback
        else:
            outcome = GaveUp(explanation=self._setback)
        self._end(Sign.LOST_PATIENCE, outcome, is_cancelled=True)

    # ------------------------------------------------------------------ a slow consumer

    def _hold_back(self) -> None:
        """Ask for nothing until there is room: a resend would only be dropped again."""
        self._is_held_back = True
        self._repeat_at_ns = None
        self._give_up_at_ns = None

    def _taken(self, next_index: int) -> None:
        self._tokens_taken = max(self._tokens_taken, next_index)
        buffered = self._tokens_received - self._tokens_taken
        if self._is_held_back and buffered <= self._options.tokens_buffered_max // 2:
            self._is_held_back = False
            self._give_up_at_ns = self._now_ns + self._options.silence_max_ns
            self._submit()

    # ------------------------------------------------------------------ phases and timer

    def _end(self, sign: Sign, outcome: Outcome, *, is_cancelled: bool = False) -> None:
        self._move(sign)
        self._repeat_at_ns = None
        self._give_up_at_ns = None
        if is_cancelled:
            self._commands.append(Cancel())
        self._commands.append(EndStream(outcome=outcome))

    def _move(self, sign: Sign) -> None:
        after = TRANSITIONS[self._phase].get(sign)
        self._phase = present(after, f"{self._request_id}: {sign} in {self._phase}")

    def _arm_timer(self) -> None:
        """Keep one timer at or before the next instant; a later instant waits for it to fire."""
        instants = [at for at in (self._repeat_at_ns, self._give_up_at_ns) if at is not None]
        if not instants or (self._armed_at_ns is not None and self._armed_at_ns <= min(instants)):
            return
        self._armed_at_ns = min(instants)
        self._commands.append(
            SetTimer(
                key=READER_TIMER,
                after_ns=max(0, self._armed_at_ns - self._now_ns),
                cause_id=self._request_id,
            )
        )


def _is_consistent(answer: TokensGenerated) -> bool:
    tokens = len(answer.token_ids)
    return len(answer.texts) == tokens and len(answer.logprobs) in (0, tokens)


def _is_unreadable(answer: Answer) -> bool:
    """Whether this rejects a message of ours that the router could not even read."""
    return isinstance(answer, RequestRejected) and answer.request_id == ""

"""Whatever the way between router and reader does, the consumer sees the answer exactly once.

The router here is a few lines that keep the contract: it answers every submission with the
acceptance and all tokens past `tokens_received`. The way loses, doubles and delays in both
directions, as hypothesis chooses, and heals after a while: safety always, liveness once healed.
"""

import heapq
import itertools
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.client.reader import StreamReader
from libs.client.reader_events import (
    AnswerReceived,
    BeginAnswer,
    DeliverTokens,
    EndStream,
    ReaderEvent,
    ReaderOptions,
    StreamOpened,
    Submit,
    TokensTaken,
)
from libs.contracts.online import (
    FinishReason,
    RejectReason,
    RequestAccepted,
    RequestFinished,
    RequestRejected,
    TokensGenerated,
)
from libs.contracts.online import ToClient as Answer
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.units import NS_PER_MS, NS_PER_S

REQUEST_ID = "request-1"
HEALED_AT_NS = 20 * NS_PER_S
STEP_NS = 30 * NS_PER_MS
EVENTS_MAX = 20_000


@dataclass
class World:
    """A reader, a router and the way between them, under virtual time."""

    reader: StreamReader
    tokens_total: int
    mishaps: list[int]
    takes_slowly: bool
    is_rejecting: bool
    now_ns: int = 0
    queue: list[tuple[int, int, object]] = field(default_factory=list)
    order: "itertools.count[int]" = field(default_factory=itertools.count)
    mishap_index: int = 0
    timer_number: int = 0
    accepted_at_ns: int | None = None
    delivered: list[int] = field(default_factory=list)
    begun: int = 0
    ends: list[object] = field(default_factory=list)

    def run(self) -> None:
        self.tell(StreamOpened())
        for _ in range(EVENTS_MAX):
            if not self.queue or self.ends:
                break
            self.now_ns, _, thing = heapq.heappop(self.queue)
            self.happen(thing)
        for _ in range(50):  # what is still under way must change nothing
            if self.queue:
                self.now_ns, _, thing = heapq.heappop(self.queue)
                self.happen(thing)

    def happen(self, thing: object) -> None:
        match thing:
            case Submit():
                self.router_hears(thing)
            case ("generate", int(index)):
                self.router_generates(index)
            case ("timer", int(number)):
                if number == self.timer_number:
                    self.tell(TimerFired(key="reader", cause_id=REQUEST_ID))
            case TokensTaken():
                self.tell(thing)
            case _:
                self.tell(AnswerReceived(answer=thing))  # type: ignore[arg-type]

    def tell(self, event: ReaderEvent) -> None:
        for command in self.reader.handle(event, now_ns=self.now_ns):
            match command:
                case Submit():
                    self.travel(command)
                case SetTimer():
                    self.timer_number += 1
                    self.at(self.now_ns + command.after_ns, ("timer", self.timer_number))
                case DeliverTokens():
                    assert command.first_index == len(self.delivered), "in order, without a gap"
                    self.delivered += command.token_ids
                    wait_ns = 400 * NS_PER_MS if self.takes_slowly else 0
                    taken = TokensTaken(next_index=len(self.delivered))
                    self.at(self.now_ns + wait_ns, taken)
                case BeginAnswer():
                    self.begun += 1
                    assert not self.delivered
                case EndStream():
                    self.ends.append(command.outcome)
        self.reader.check_invariants()

    def at(self, at_ns: int, thing: object) -> None:
        heapq.heappush(self.queue, (at_ns, next(self.order), thing))

    def travel(self, thing: object) -> None:
        """Bring a message over: mishap 0..2 delivers, 3 loses, 4 doubles, 5.. delays."""
        mishap = 0
        if self.now_ns < HEALED_AT_NS and self.mishaps:
            mishap = self.mishaps[self.mishap_index % len(self.mishaps)]
            self.mishap_index += 1
        if mishap == 3:
            return
        delay_ns = NS_PER_MS + (mishap - 4) * 100 * NS_PER_MS * (mishap > 4)
        self.at(self.now_ns + delay_ns, thing)
        if mishap == 4:
            self.at(self.now_ns + 900 * NS_PER_MS, thing)

    def router_hears(self, submission: Submit) -> None:
        if self.is_rejecting and self.mishap_index % 3 == 0 and self.now_ns < HEALED_AT_NS:
            rejection = RequestRejected(
                request_id=REQUEST_ID,
                reason=RejectReason.RECOVERING,
                message="",
                retry_after_ms=300,
            )
            self.travel(rejection)
            return
        self.travel(RequestAccepted(request_id=REQUEST_ID, router_id="r", prompt_tokens=1))
        if self.accepted_at_ns is None:
            self.accepted_at_ns = self.now_ns
            self.at(self.now_ns + STEP_NS, ("generate", 0))
            return
        known = self.generated()
        if submission.tokens_received < known:
            self.travel(_tokens(submission.tokens_received, known))
        if known == self.tokens_total:
            self.travel(self.finished())

    def generated(self) -> int:
        assert self.accepted_at_ns is not None
        return min(self.tokens_total, (self.now_ns - self.accepted_at_ns) // STEP_NS)

    def router_generates(self, index: int) -> None:
        if index < self.tokens_total:
            self.travel(_tokens(index, index + 1))
            self.at(self.now_ns + STEP_NS, ("generate", index + 1))
        else:
            self.travel(self.finished())

    def finished(self) -> RequestFinished:
        return RequestFinished(
            request_id=REQUEST_ID,
            finish_reason=FinishReason.STOP,
            prompt_tokens=1,
            completion_tokens=self.tokens_total,
        )


def _tokens(start: int, end: int) -> TokensGenerated:
    return TokensGenerated(
        request_id=REQUEST_ID,
        first_index=start,
        token_ids=tuple(100 + i for i in range(start, end)),
        texts=tuple(str(i) for i in range(start, end)),
    )


@settings(max_examples=150, deadline=None)
@given(
    tokens_total=st.integers(min_value=1, max_value=60),
    mishaps=st.lists(st.integers(min_value=0, max_value=12), max_size=40),
    buffered_max=st.sampled_from([1, 3, 8192]),
    takes_slowly=st.booleans(),
    is_rejecting=st.booleans(),
)
def test_every_token_comes_out_once_and_in_order_and_the_end_comes_once(
    *,
    tokens_total: int,
    mishaps: list[int],
    buffered_max: int,
    takes_slowly: bool,
    is_rejecting: bool,
) -> None:
    options = ReaderOptions(tokens_buffered_max=buffered_max)
    world = World(
        reader=StreamReader(REQUEST_ID, options),
        tokens_total=tokens_total,
        mishaps=mishaps,
        takes_slowly=takes_slowly,
        is_rejecting=is_rejecting,
    )
    world.run()
    assert world.delivered == [100 + i for i in range(tokens_total)]
    assert world.begun == 1
    assert world.ends == [world.finished()]


@settings(max_examples=100, deadline=None)
@given(
    answers=st.lists(
        st.one_of(
            st.builds(_tokens, st.integers(0, 5), st.integers(5, 12)),
            st.builds(
                RequestFinished,
                request_id=st.sampled_from([REQUEST_ID, "other"]),
                finish_reason=st.just(FinishReason.STOP),
                prompt_tokens=st.just(1),
                completion_tokens=st.integers(0, 12),
            ),
            st.builds(
                RequestRejected,
                request_id=st.sampled_from([REQUEST_ID, "other", ""]),
                reason=st.sampled_from(RejectReason),
                message=st.just(""),
                retry_after_ms=st.sampled_from([None, 0, 300]),
            ),
            st.just(RequestAccepted(request_id=REQUEST_ID, router_id="r", prompt_tokens=1)),
        ),
        max_size=30,
    ),
    pause_ns=st.sampled_from([0, 100 * NS_PER_MS, 2 * NS_PER_S]),
)
def test_even_a_router_out_of_its_mind_gets_no_token_delivered_twice(
    *, answers: list[Answer], pause_ns: int
) -> None:
    reader = StreamReader(REQUEST_ID, ReaderOptions())
    commands = list(reader.handle(StreamOpened(), now_ns=0))
    for number, answer in enumerate(answers, start=1):
        event = AnswerReceived(answer=answer)
        commands += reader.handle(event, now_ns=number * pause_ns)
        reader.check_invariants()
    delivered = [i for c in commands if isinstance(c, DeliverTokens) for i in c.token_ids]
    assert delivered == [100 + i for i in range(len(delivered))]
    assert sum(isinstance(c, EndStream) for c in commands) <= 1
    assert not any(isinstance(c, EndStream) for c in commands[:-1])

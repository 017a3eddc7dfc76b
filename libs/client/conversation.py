"""The shell of one StreamReader: publishes what it asks for, keeps its timer, buffers its tokens.

Nothing here decides. A conversation belongs to the client's table of open ones; the TokenStream
that a user holds only looks at it, so that a forgotten stream can be noticed and cancelled.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import assert_never

from libs.client.answers import Token
from libs.client.reader import StreamReader
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
from libs.contracts import subjects
from libs.contracts.online import (
    CancelRequest,
    RejectReason,
    RequestRejected,
    SubmitRequest,
)
from libs.contracts.online import ToClient as Answer
from libs.contracts.wire import Encoding, encode
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.errors import ContractViolation, InvariantViolation, Unavailable
from libs.kernel.units import seconds
from libs.runtime.bus import CoreBus, PayloadTooLarge
from libs.runtime.clock import Clock


class Conversation:
    """One open request: its reader, its timer, and the tokens that wait for the consumer."""

    def __init__(
        self,
        *,
        bus: CoreBus,
        clock: Clock,
        subject: str,
        reply_to: str,
        submission: SubmitRequest,
        encoding: Encoding,
        options: ReaderOptions,
        on_open: Callable[["Conversation"], None],
        on_end: Callable[[str], None],
        on_violation: Callable[[InvariantViolation], None],
    ) -> None:
        self.submission = submission
        self.reader = StreamReader(submission.request_id, options)
        self.tokens: deque[Token] = deque()
        self.is_begun = False
        self.prompt_tokens: int | None = None
        self.outcome: Outcome | None = None
        self._bus = bus
        self._clock = clock
        self._subject = subject
        self._reply_to = reply_to
        self._encoding = encoding
        self._on_open = on_open
        self._on_end = on_end
        self._on_violation = on_violation
        self._timer: asyncio.TimerHandle | None = None
        self._effects: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def request_id(self) -> str:
        """The id under which the request is known to everybody."""
        return self.submission.request_id

    def open(self) -> None:
        """Enter the client's table and begin to submit. Raises: RequestRefused from the table."""
        self._on_open(self)
        self._post(StreamOpened())

    def receive(self, answer: Answer) -> None:
        """Take a router's message."""
        self._post(AnswerReceived(answer=answer))

    def leave(self) -> None:
        """End without the rest; the request is cancelled if it may be running."""
        if self.outcome is None:
            self._post(StreamLeft())

    def abandon(self) -> None:
        """End without the rest and let the request run: somebody else will ask for it."""
        if self.outcome is None:
            self._ended(Left())

    def unheard(self, explanation: str) -> None:
        """Note that a submission reached nobody."""
        self._post(SubmissionUnheard(explanation=explanation))

    def take(self) -> Token:
        """Remove the oldest waiting token; the buffer must not be empty."""
        token = self.tokens.popleft()
        self._post(TokensTaken(next_index=token.index + 1))
        return token

    async def wait_for_change(self) -> None:
        """Return when a token, the acceptance or the end has come since the last look."""
        await self._changed.wait()
        self._changed.clear()

    async def finish_effects(self) -> None:
        """Return when what was to be published has been."""
        while self._effects:
            await asyncio.wait(self._effects)

    def _post(self, event: ReaderEvent) -> None:
        try:
            commands = self.reader.handle(event, now_ns=self._clock.now_ns())
        except InvariantViolation as violation:
            # Our bug should end the process, wherever it showed; no consumer waits till then.
            self._ended(GaveUp(explanation=f"the client is at fault: {violation}"))
            self._on_violation(violation)
            return
        for command in commands:
            self._perform(command)

    def _perform(self, command: ReaderCommand) -> None:
        match command:
            case DeliverTokens():
                self.tokens.extend(_tokens_of(command))
                self._changed.set()
            case BeginAnswer():
                self.is_begun = True
                self.prompt_tokens = command.prompt_tokens
                self._changed.set()
            case EndStream():
                self._ended(command.outcome)
            case Submit():
                self._start(self._submit(command.tokens_received))
            case Cancel():
                self._start(self._cancel())
            case SetTimer():
                self._set_timer(command)
            case _:
                assert_never(command)

    def _ended(self, outcome: Outcome) -> None:
        self.outcome = outcome
        if self._timer is not None:
            self._timer.cancel()
        self._on_end(self.request_id)
        self._changed.set()

    def _set_timer(self, command: SetTimer) -> None:
        if self._timer is not None:
            self._timer.cancel()
        fired = TimerFired(key=command.key, cause_id=command.cause_id)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds(command.after_ns), self._post, fired)

    def _start(self, effect: Coroutine[object, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(effect)
        self._effects.add(task)
        task.add_done_callback(self._effects.discard)

    async def _submit(self, tokens_received: int) -> None:
        submission = self.submission.model_copy(update={"tokens_received": tokens_received})
        try:
            payload = encode(submission, encoding=self._encoding)
            await self._bus.publish(self._subject, payload, reply_to=self._reply_to)
        except PayloadTooLarge as error:
            self._reject_here(RejectReason.TOO_LARGE, str(error))
        except ContractViolation as error:
            self._reject_here(RejectReason.INVALID, str(error))
        except Unavailable as error:
            self.unheard(str(error))

    async def _cancel(self) -> None:
        cancellation = CancelRequest(request_id=self.request_id)
        try:
            await self._bus.publish(subjects.cancel(self.request_id), encode(cancellation))
        except Unavailable:
            return  # The contract of CancelRequest: lost, the request runs to its end.

    def _reject_here(self, reason: RejectReason, message: str) -> None:
        rejection = RequestRejected(request_id=self.request_id, reason=reason, message=message)
        self.receive(rejection)


def _tokens_of(command: DeliverTokens) -> Iterator[Token]:
    for offset, (token_id, text) in enumerate(zip(command.token_ids, command.texts, strict=True)):
        yield Token(
            index=command.first_index + offset,
            token_id=token_id,
            text=text,
            logprobs=command.logprobs[offset] if command.logprobs else None,
        )

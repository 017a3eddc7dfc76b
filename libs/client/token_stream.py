"""What a user iterates over: the tokens of one answer, each exactly once."""

import asyncio
import weakref
from collections.abc import AsyncIterator
from typing import Final, NoReturn, Self, assert_never

from libs.client.answers import Token, Usage
from libs.client.conversation import Conversation
from libs.client.errors import RequestFailedError, RequestRefused
from libs.client.reader_events import GaveUp, Left, Outcome
from libs.contracts.online import FinishReason, RequestFailed, RequestFinished, RequestRejected
from libs.kernel.errors import InvariantViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S

RETRY_AFTER_NS: Final = 1 * NS_PER_S


class TokenStream:
    """An async iterator of tokens; leaving it early, closing or forgetting it cancels the request.

    The request is sent at the first `async with`, `accepted()` or `async for`. Errors are raised
    where the stream is read: RequestRefused, RequestFailedError, Unavailable.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._is_open = False
        self._finalizer: weakref.finalize[..., TokenStream] | None = None

    @property
    def request_id(self) -> str:
        """The id under which routers, workers and logs know this request."""
        return self._conversation.request_id

    @property
    def is_ended(self) -> bool:
        """Whether the answer has ended, well or not; tokens may still wait to be read."""
        return self._conversation.outcome is not None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended well; None before that."""
        outcome = self._conversation.outcome
        return outcome.finish_reason if isinstance(outcome, RequestFinished) else None

    @property
    def usage(self) -> Usage | None:
        """The tokens of prompt and answer; None before the answer ended well."""
        outcome = self._conversation.outcome
        if not isinstance(outcome, RequestFinished):
            return None
        return Usage(
            prompt_tokens=outcome.prompt_tokens, completion_tokens=outcome.completion_tokens
        )

    @property
    def prompt_tokens(self) -> int | None:
        """The length of the prompt, once a router has told it."""
        usage = self.usage
        return self._conversation.prompt_tokens if usage is None else usage.prompt_tokens

    @property
    def submissions(self) -> int:
        """How often the request was published; more than one means that something was lost."""
        return self._conversation.reader.submissions

    async def accepted(self) -> None:
        """Return once a router has accepted the request.

        Raises: RequestRefused, RequestFailedError, Unavailable.
        """
        self._open()
        while not self._conversation.is_begun and self._conversation.outcome is None:
            await self._conversation.wait_for_change()
        if not self._conversation.is_begun:
            _raise(self._conversation.outcome)

    async def aclose(self) -> None:
        """End the stream; a request still running is cancelled. Calling it twice is harmless."""
        self._conversation.leave()
        await self._conversation.finish_effects()

    def abandon(self) -> None:
        """End the stream here and let the request run: its request_id, repeated, reads it on."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._conversation.abandon()

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Token]:
        return self

    async def __anext__(self) -> Token:
        self._open()
        while not self._conversation.tokens:
            if self._conversation.outcome is not None:
                if isinstance(self._conversation.outcome, RequestFinished):
                    raise StopAsyncIteration
                _raise(self._conversation.outcome)
            await self._conversation.wait_for_change()
        return self._conversation.take()

    def take_ready(self) -> list[Token]:
        """Return, without waiting, the tokens that have arrived and were not read yet."""
        ready = []
        while self._conversation.tokens:
            ready.append(self._conversation.take())
        return ready

    def _open(self) -> None:
        if self._is_open:
            return
        self._conversation.open()
        self._is_open = True
        # `async for ...: break` closes nothing; that nobody holds the stream any more does.
        loop = asyncio.get_running_loop()
        self._finalizer = weakref.finalize(self, _leave, loop, self._conversation)
        self._finalizer.atexit = False


def _leave(loop: asyncio.AbstractEventLoop, conversation: Conversation) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(conversation.leave)


def _raise(outcome: Outcome | None) -> NoReturn:
    match outcome:
        case RequestRejected():
            after_ms = outcome.retry_after_ms
            raise RequestRefused(
                outcome.message,
                reason=outcome.reason,
                parameter=outcome.parameter,
                retry_after_ns=None if after_ms is None else after_ms * NS_PER_MS,
            )
        case RequestFailed():
            raise RequestFailedError(outcome.message, reason=outcome.reason)
        case GaveUp():
            raise Unavailable(outcome.explanation, retry_after_ns=RETRY_AFTER_NS)
        case Left() | None:
            raise Unavailable("the stream was closed", retry_after_ns=RETRY_AFTER_NS)
        case RequestFinished():
            raise InvariantViolation("an answer that ended well was taken for a failure")
        case _:
            assert_never(outcome)

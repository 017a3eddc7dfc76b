"""Asks the fleet for one whole answer, and stores what it took so long to compute."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from libs.client.answers import Token
from libs.client.client import TideClient
from libs.client.errors import RequestFailedError, RequestRefused
from libs.client.token_stream import TokenStream
from libs.contracts.online import FailReason, RejectReason, SubmitRequest
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS, seconds
from libs.runtime.bus import StreamFull
from services.offline_queue.commands import FailLine, StartLine
from services.offline_queue.events import LinePutOff

EXPIRES_AFTER_MS_MAX: Final = 86_400_000
STORE_ATTEMPTS: Final = 8
STORE_AGAIN_NS: Final = 250 * NS_PER_MS
CONGESTION: Final = frozenset({RejectReason.OVERLOADED, RejectReason.NO_WORKER})
"""Rejections that say that fewer lines should run; the client hands them over at once."""


class Asking:
    """One client's answers, whole."""

    def __init__(self, client: TideClient) -> None:
        self.client = client
        self.tokens_harvested = 0
        """Of prompts and answers, counted as they come."""
        self.is_leaving = False
        """Whether a cancelled line is left to other queues, rather than ended."""

    async def tokens(
        self, model: str, submission: SubmitRequest
    ) -> tuple[Sequence[Token], TokenStream]:
        """Return a whole answer. Raises: RequestRefused, RequestFailedError, Unavailable."""
        stream = self.client.submit(model, submission)
        tokens: list[Token] = []
        try:
            async for token in stream:
                if not tokens:
                    self.tokens_harvested += stream.prompt_tokens or 0
                tokens.append(token)
                self.tokens_harvested += 1
            return tokens, stream
        except asyncio.CancelledError:
            if self.is_leaving:
                stream.abandon()
            raise
        finally:
            await stream.aclose()

    async def forget(self, submissions: Sequence[SubmitRequest]) -> None:
        """Tell the routers that these answers are stored."""
        for submission in submissions:
            await self.client.forget(submission.request_id)


async def stored_at_last(store: Callable[[], Awaitable[None]]) -> bool:
    """Store what took so long to compute; the broker may be away for a while.

    Returns whether it is stored. Repeating is safe: a copy has the same message id.
    """
    for attempt in range(STORE_ATTEMPTS):
        try:
            await store()
        except StreamFull:
            return False
        except Unavailable:
            await asyncio.sleep(seconds(STORE_AGAIN_NS << attempt))
        else:
            return True
    return False


def expires_after_ms(command: StartLine) -> int:
    """Return when a request is worth nothing any more."""
    return min(max(1, command.expires_after_ns // NS_PER_MS), EXPIRES_AFTER_MS_MAX)


def put_off(command: StartLine | FailLine, *, is_congestion: bool = False) -> LinePutOff:
    """Say that the line is to be asked again later."""
    return LinePutOff(
        part_key=command.part_key,
        line=command.line,
        is_congestion=is_congestion,
        cause_id=command.cause_id,
    )


def refused(command: StartLine, refusal: RequestRefused) -> LinePutOff | None:
    """Say likewise of a refusal; None if it is for good."""
    if refusal.retry_after_ns is None:
        return None
    return put_off(command, is_congestion=refusal.reason in CONGESTION)


def failed(command: StartLine, failure: RequestFailedError) -> LinePutOff:
    """Say likewise of a failure. That of an expired request counts for nothing: by then the
    deadline has passed."""
    is_expired = failure.reason is FailReason.EXPIRED
    return LinePutOff(
        part_key=command.part_key,
        line=command.line,
        failure="" if is_expired else f"{failure.reason}: {failure}",
        cause_id=command.cause_id,
    )

"""Answers questions about text, one at a time, beside the router's sessions and without its core.

The questions waiting are bounded by the subscription; past it the oldest client times out and asks
again. The thread is the one that tokenises submissions: one question at most stands before those.
"""

import asyncio
from concurrent.futures import Executor
from typing import Final

import structlog

from libs.contracts import subjects
from libs.contracts.online import RejectReason
from libs.contracts.text import TEXT_QUESTIONS, TextAnswer, TextRejected
from libs.contracts.wire import encode, encoding_of
from libs.kernel.errors import ContractViolation, Unavailable
from libs.runtime.bus import BusMessage, CoreBus, PayloadTooLarge, Subscription
from services.online_router.tokenization import Tokenization

QUESTIONS_WAITING_MAX: Final = 256

_log = structlog.get_logger(__name__)


class TextDesk:
    """The router's answers on `text(alias)`."""

    def __init__(self, *, bus: CoreBus, tokenization: Tokenization, thread: Executor) -> None:
        self._bus = bus
        self._tokenization = tokenization
        self._thread = thread

    async def subscribe(self) -> Subscription:
        """Listen, as one of the routers."""
        return await self._bus.subscribe(
            subjects.TEXT_ALL,
            queue_group=subjects.ROUTER_QUEUE_GROUP,
            pending_messages_max=QUESTIONS_WAITING_MAX,
        )

    async def run(self, questions: Subscription) -> None:
        """Answer until the subscription is closed."""
        async for message in questions:
            if message.reply_to is None:
                continue
            try:
                await self._reply(message, message.reply_to)
            except Unavailable:
                continue  # The client asks again.

    async def _reply(self, message: BusMessage, reply_to: str) -> None:
        encoding = encoding_of(message.payload)
        answer = await self._answer(message)
        try:
            await self._bus.publish(reply_to, encode(answer, encoding=encoding))
        except PayloadTooLarge as error:
            refusal = TextRejected(reason=RejectReason.TOO_LARGE, message=str(error))
            await self._bus.publish(reply_to, encode(refusal, encoding=encoding))

    async def _answer(self, message: BusMessage) -> TextAnswer:
        try:
            question = TEXT_QUESTIONS.decode(message.payload)
        except ContractViolation as violation:
            return TextRejected(reason=RejectReason.MALFORMED, message=str(violation))
        alias = subjects.last_token(message.subject)
        loop = asyncio.get_running_loop()
        answering = loop.run_in_executor(self._thread, self._tokenization.answer, alias, question)
        await asyncio.wait({answering})
        error = answering.exception()
        if error is None:
            return answering.result()
        # A tokenizer that fails in a way we do not know must not end the router.
        _log.warning("text_unanswerable", model=alias, error=type(error).__name__)
        explanation = f"the text cannot be processed ({type(error).__name__})"
        return TextRejected(reason=RejectReason.INVALID, message=explanation)

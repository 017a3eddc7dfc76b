"""One request from submission to response: wait for acceptance, then answer whole or as a stream.

Nothing is sent before a router has accepted, so that a refusal has a proper HTTP status.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libs.client.client import TideClient
from libs.client.conversation import Token
from libs.client.errors import RequestFailedError, RequestRefused
from libs.client.token_stream import TokenStream, Usage
from libs.contracts.online import SubmitRequest
from libs.kernel.errors import Unavailable
from services.http_gateway.answer_form import AnswerForm, JsonObject, usage_object
from services.http_gateway.errors import ApiError, from_exception
from services.http_gateway.measures import Measures
from services.http_gateway.schemas import StreamOptions
from services.http_gateway.sse import DONE, BrokenAnswer, EventStream, disconnected, event

FLEET_ERRORS: Final = (RequestRefused, RequestFailedError, Unavailable)
STREAM_LIFE_MARGIN_S: Final = 60.0
CLIENT_GONE_STATUS: Final = 499

ResultT = TypeVar("ResultT")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a caller asked for, in the fleet's words, and how the answer is to look."""

    model: str
    submission: SubmitRequest
    form: AnswerForm
    prompt_parameter: str
    is_streaming: bool
    stream_options: StreamOptions


class Answering:
    """Answers orders over a client of the bus."""

    def __init__(self, client: TideClient, measures: Measures, *, request_timeout_s: float) -> None:
        self._client = client
        self._measures = measures
        self._life_s_max = request_timeout_s + STREAM_LIFE_MARGIN_S

    async def answer(self, order: Order, request: Request) -> Response:
        """Return the response once the request is accepted (stream) or complete (whole).

        Raises: ApiError where it is refused or fails before anything was sent.
        """
        answer = _Answer(order, self._client.submit(order.model, order.submission), self._measures)
        response: Response | None
        try:
            if order.is_streaming:
                await _unless_disconnected(request, answer.stream.accepted())
                return EventStream(
                    answer.events(), life_s_max=self._life_s_max, on_close=answer.close
                )
            response = await _unless_disconnected(request, answer.whole())
        except FLEET_ERRORS as error:
            await answer.close()
            told = from_exception(error, prompt_parameter=order.prompt_parameter)
            raise ApiError(told) from error
        except ClientGone:
            await answer.close()
            return Response(status_code=CLIENT_GONE_STATUS)
        except BaseException:
            await answer.close()
            raise
        await answer.close()
        return response


class ClientGone(Exception):
    """The caller hung up before there was anything to send."""


class _Answer:
    """One order under way."""

    def __init__(self, order: Order, stream: TokenStream, measures: Measures) -> None:
        self.stream = stream
        self._order = order
        self._measures = measures
        self._begun_at = time.monotonic()
        self._completion_tokens = 0
        self._is_closed = False
        measures.streams_open.inc()

    async def whole(self) -> Response:
        """Return the answer in one object."""
        texts = [token.text async for token in self._counted()]
        finish_reason, usage = self.stream.finish_reason, self.stream.usage
        assert finish_reason is not None
        assert usage is not None
        content = self._order.form.whole("".join(texts), finish_reason=finish_reason, usage=usage)
        return JSONResponse(content)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the events of the stream; raises BrokenAnswer after telling why it breaks."""
        try:
            async for content in self._contents():
                yield event(content)
            yield DONE
        except FLEET_ERRORS as error:
            self._measures.streams_broken.inc()
            told = from_exception(error, prompt_parameter=self._order.prompt_parameter)
            _log.warning("stream_broken", request_id=self.stream.request_id, reason=told.code)
            yield event(told.envelope())
            raise BrokenAnswer from error

    async def close(self) -> None:
        """Let go of the stream, which cancels it if it has not ended; count it once."""
        if self._is_closed:
            return
        self._is_closed = True
        if not self.stream.is_ended:
            self._measures.clients_gone.inc()
        await self.stream.aclose()
        self._measures.streams_open.dec()
        self._measures.tokens.inc(self._completion_tokens)
        self._measures.submissions_repeated.inc(max(0, self.stream.submissions - 1))
        if self.stream.finish_reason is not None:
            self._measures.finished(self.stream.finish_reason)
        _log.info(
            "request_ended",
            request_id=self.stream.request_id,
            model=self._order.model,
            finish_reason=self.stream.finish_reason,
            completion_tokens=self._completion_tokens,
            submissions=self.stream.submissions,
            duration_ms=round((time.monotonic() - self._begun_at) * 1000),
        )

    async def _contents(self) -> AsyncGenerator[JsonObject, None]:
        form = self._order.form
        opening = form.opening()
        if opening is not None:
            yield self._with_usage(opening)
        async for token in self._counted():
            # A reader that falls behind gets what has arrived meanwhile in one chunk.
            ready = self.stream.take_ready()
            self._completion_tokens += len(ready)
            text = token.text + "".join(later.text for later in ready)
            if text:
                yield self._with_usage(form.piece(text))
        finish_reason, usage = self.stream.finish_reason, self.stream.usage
        assert finish_reason is not None
        assert usage is not None
        yield self._with_usage(form.ending(finish_reason))
        if self._order.stream_options.include_usage:
            yield {**form.usage_only(), "usage": dict(usage_object(usage))}

    async def _counted(self) -> AsyncGenerator[Token, None]:
        async for token in self.stream:
            if self._completion_tokens == 0:
                waited_s = time.monotonic() - self._begun_at
                self._measures.first_token_seconds.observe(waited_s)
            self._completion_tokens += 1
            yield token

    def _with_usage(self, content: JsonObject) -> JsonObject:
        """Every chunk has a usage if one was asked for: null, or the count so far."""
        options = self._order.stream_options
        if not options.include_usage:
            return content
        if not options.continuous_usage_stats:
            return {**content, "usage": None}
        usage = Usage(
            prompt_tokens=self.stream.prompt_tokens or 0,
            completion_tokens=self._completion_tokens,
        )
        return {**content, "usage": dict(usage_object(usage))}


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Return what the work returns. Raises: ClientGone if the caller hangs up first."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)

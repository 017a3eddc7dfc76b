"""One request from submission to response: wait for acceptance, then answer whole or as a stream.

Nothing is sent before a router has accepted, so that a refusal has a proper HTTP status.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Final, TypeVar

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libs.client.answers import Usage
from libs.client.client import TideClient
from libs.client.errors import RequestFailedError, RequestRefused
from libs.client.together import all_of
from libs.kernel.errors import Unavailable
from libs.openai_api.answer_form import Ended, JsonObject, usage_object
from libs.openai_api.errors import ApiError, from_exception
from libs.openai_api.orders import Order
from libs.openai_api.schemas import StreamOptions
from libs.runtime.bus import NO_HEADERS
from libs.runtime.tracing import RequestSpan, Tracing
from services.http_gateway.choices import Choice, merged
from services.http_gateway.measures import Measures
from services.http_gateway.request_ids import request_id_of, shown_id_of
from services.http_gateway.sse import DONE, BrokenAnswer, EventStream, disconnected, event

FLEET_ERRORS: Final = (RequestRefused, RequestFailedError, Unavailable)
STREAM_LIFE_MARGIN_S: Final = 60.0
CLIENT_GONE_STATUS: Final = 499

ResultT = TypeVar("ResultT")

_log = structlog.get_logger(__name__)


class Answering:
    """Answers orders over a client of the bus."""

    def __init__(
        self,
        client: TideClient,
        measures: Measures,
        *,
        request_timeout_s: float,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._client = client
        self._measures = measures
        self._life_s_max = request_timeout_s + STREAM_LIFE_MARGIN_S

    async def answer(
        self, order: Order, request: Request, *, stream: StreamOptions | None
    ) -> Response:
        """Return the response: with `stream` once all choices are accepted, else once complete.

        Raises: ApiError where one is refused or fails before anything was sent.
        """
        span = None if self._tracing is None else _begin_span(self._tracing, order, request)
        answer = _Answer(order, request, self._client, self._measures, span)
        response: Response | None
        try:
            if stream is not None:
                await _unless_disconnected(request, answer.accepted())
                return EventStream(
                    answer.events(stream), life_s_max=self._life_s_max, on_close=answer.close
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

    def __init__(
        self,
        order: Order,
        request: Request,
        client: TideClient,
        measures: Measures,
        span: RequestSpan | None,
    ) -> None:
        self._order = order
        self._request_id = request_id_of(request)
        self._shown_id = shown_id_of(request)
        self._span = span
        headers = NO_HEADERS if span is None else span.headers
        self._choices = [
            Choice(
                index=index,
                stream=client.submit(order.model, submission, headers=headers),
                on_tokens=self._note_first_token,
            )
            for index, submission in enumerate(order.submissions)
        ]
        self._measures = measures
        self._begun_at = time.monotonic()
        self._is_first_token_seen = False
        self._is_closed = False
        measures.streams_open.inc()

    async def accepted(self) -> None:
        """Return once every choice is accepted."""
        await all_of([choice.stream.accepted() for choice in self._choices])

    async def whole(self) -> Response:
        """Return the answer in one object."""
        choices = await all_of([choice.whole() for choice in self._choices])
        return JSONResponse(self._order.form.whole(choices, usage=self._usage()))

    async def events(self, options: StreamOptions) -> AsyncGenerator[bytes, None]:
        """Yield the events of the stream; raises BrokenAnswer after telling why it breaks."""
        try:
            async with aclosing(self._contents(options)) as contents:
                async for content in contents:
                    yield event(content)
            yield DONE
        except FLEET_ERRORS as error:
            self._measures.streams_broken.inc()
            told = from_exception(error, prompt_parameter=self._order.prompt_parameter)
            _log.warning("stream_broken", request_id=self._request_id, reason=told.code)
            yield event(told.envelope())
            raise BrokenAnswer from error

    async def close(self) -> None:
        """Let go of the streams, which cancels what has not ended; count the answer once."""
        if self._is_closed:
            return
        self._is_closed = True
        streams = [choice.stream for choice in self._choices]
        if not all(stream.is_ended for stream in streams):
            self._measures.clients_gone.inc()
        for stream in streams:
            await stream.aclose()
        if self._span is not None:
            is_whole = all(stream.finish_reason is not None for stream in streams)
            tokens = {"completion_tokens": self._completion_tokens}
            self._span.end(tokens, failure="" if is_whole else "no whole answer")
        self._measures.streams_open.dec()
        self._measures.tokens.inc(self._completion_tokens)
        for stream in streams:
            self._measures.submissions_repeated.inc(max(0, stream.submissions - 1))
            if stream.finish_reason is not None:
                self._measures.finished(stream.finish_reason)
        _log.info(
            "request_ended",
            request_id=self._request_id,
            shown_id=self._shown_id,
            model=self._order.model,
            finish_reasons=[stream.finish_reason for stream in streams],
            completion_tokens=self._completion_tokens,
            submissions=sum(stream.submissions for stream in streams),
            duration_ms=round((time.monotonic() - self._begun_at) * 1000),
        )

    async def _contents(self, options: StreamOptions) -> AsyncGenerator[JsonObject, None]:
        form = self._order.form
        for opening in form.openings():
            yield self._with_usage(opening, options)
        async with aclosing(merged(self._choices)) as arriving:
            async for item in arriving:
                content = form.ending(item) if isinstance(item, Ended) else form.piece(item)
                if content is not None:
                    yield self._with_usage(content, options)
        if options.include_usage:
            yield {**form.usage_only(), "usage": dict(usage_object(self._usage()))}

    def _note_first_token(self) -> None:
        if not self._is_first_token_seen:
            self._is_first_token_seen = True
            if self._span is not None:
                self._span.note_first_token()
            self._measures.first_token_seconds.observe(time.monotonic() - self._begun_at)

    @property
    def _completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self._choices)

    def _usage(self) -> Usage:
        """What the answer took so far."""
        return self._order.usage(
            prompt_tokens=[choice.stream.prompt_tokens or 0 for choice in self._choices],
            completion_tokens=self._completion_tokens,
        )

    def _with_usage(self, content: JsonObject, options: StreamOptions) -> JsonObject:
        """Every chunk has a usage if one was asked for: null, or the count so far."""
        if not options.include_usage:
            return content
        if not options.continuous_usage_stats:
            return {**content, "usage": None}
        return {**content, "usage": dict(usage_object(self._usage()))}


def _begin_span(tracing: Tracing, order: Order, request: Request) -> RequestSpan:
    """Begin the gateway's span, below the caller's where the caller traces."""
    about = {
        "request_id": request_id_of(request),
        "model": order.model,
        "path": request.url.path,
    }
    return tracing.begin("answer", parent=request.headers, attributes=about)


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

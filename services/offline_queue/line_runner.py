"""Has the fleet answer one line or job, and stores how it ended; decides nothing about retries.

The request id is a function of batch and line: whoever asks again, after whatever died, asks for
the same session, which the routers' journals have kept.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from libs.client.answers import Token
from libs.client.client import TideClient
from libs.client.errors import RequestFailedError, RequestRefused
from libs.client.together import all_of
from libs.client.token_stream import TokenStream
from libs.contracts.batches import (
    STATUS_OK,
    BatchLineEnded,
    JobEnded,
    LineFailure,
    SubmitJob,
)
from libs.contracts.online import FailReason, RejectReason, SubmitRequest
from libs.kernel.errors import Unavailable
from libs.kernel.units import KIB, NS_PER_MS, seconds
from libs.openai_api.answer_form import Ended, JsonObject, Piece
from libs.openai_api.errors import ApiError, from_exception
from libs.openai_api.orders import Order, Orders
from libs.openai_api.text_questions import TextQuestions
from libs.runtime.blob_store import BlobStore, write_whole
from libs.runtime.bus import PayloadTooLarge, StreamFull
from libs.runtime.clock import Clock
from services.offline_queue.commands import FailLine, StartLine
from services.offline_queue.events import LinePutOff, LineStored
from services.offline_queue.line_file import BatchLine
from services.offline_queue.store import OfflineStore

BODY_INLINE_BYTES_MAX: Final = 256 * KIB
"""A longer body goes to the blob store."""
EXPIRES_AFTER_MS_MAX: Final = 86_400_000
STORE_ATTEMPTS: Final = 8
STORE_AGAIN_NS: Final = 250 * NS_PER_MS
DIGEST_BYTES: Final = 8
CONGESTION: Final = frozenset({RejectReason.OVERLOADED, RejectReason.NO_WORKER})
"""Rejections that say that fewer lines should run; the client hands them over at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedLine:
    """A line and where it belongs."""

    batch_id: str
    part: int
    tenant: str
    content: BatchLine


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedJob:
    """A job, and how often it was taken up."""

    alias: str
    job: SubmitJob
    deliveries: int


class LineRunner:
    """Runs lines over one client."""

    def __init__(
        self, *, client: TideClient, store: OfflineStore, blobs: BlobStore, clock: Clock
    ) -> None:
        self._client = client
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._text = TextQuestions(client)
        self.tokens_harvested = 0
        """Of prompts and answers, counted as they come."""
        self.is_leaving = False
        """Whether a cancelled line is left to other queues, rather than ended."""

    async def run_line(self, loaded: LoadedLine, command: StartLine) -> LineStored | LinePutOff:
        """Answer a line of a batch."""
        request_id = line_request_id(loaded.batch_id, command.line, attempt=command.attempt)
        orders = Orders(text=self._text, expires_after_ms=_expires_after_ms(command))
        try:
            order = await orders.order(
                loaded.content.request,
                request_id=request_id,
                created_at_unix_s=self._store.now_unix_s(),
            )
        except ApiError as error:
            if error.answer.retry_after_ns is not None or error.answer.status >= 500:
                return _put_off(command)
            return await self._store_refusal(loaded, command, request_id, error)
        try:
            return await self._answer(loaded, command, request_id, order)
        except RequestRefused as refusal:
            if refusal.retry_after_ns is not None:
                return _put_off(command, is_congestion=refusal.reason in CONGESTION)
            told = from_exception(refusal, prompt_parameter=order.prompt_parameter)
            return await self._store_refusal(loaded, command, request_id, ApiError(told))
        except RequestFailedError as failure:
            return _failed(command, failure)
        except Unavailable:
            return _put_off(command)

    async def run_job(self, loaded: LoadedJob, command: StartLine) -> LineStored | LinePutOff:
        """Answer a job."""
        request = loaded.job.request
        attempt = f"-{command.attempt}" if command.attempt else ""
        request_id = f"{request.request_id[: 64 - len(attempt)]}{attempt}"
        submission = request.model_copy(
            update={
                "request_id": request_id,
                "tenant": loaded.job.tenant or request.tenant,
                "priority": command.priority,
                "expires_after_ms": _expires_after_ms(command),
            }
        )
        try:
            tokens, stream = await self._tokens(loaded.alias, submission)
        except RequestRefused as refusal:
            if refusal.retry_after_ns is not None:
                return _put_off(command, is_congestion=refusal.reason in CONGESTION)
            ended = self._job_failed(loaded, refusal.reason, str(refusal))
            return await self._store_job(loaded, command, ended)
        except RequestFailedError as failure:
            return _failed(command, failure)
        except Unavailable:
            return _put_off(command)
        ended = JobEnded(
            request_id=request.request_id,
            text="".join(token.text for token in tokens),
            token_ids=tuple(token.token_id for token in tokens),
            finish_reason=stream.finish_reason,
            prompt_tokens=stream.prompt_tokens or 0,
            completion_tokens=len(tokens),
            deliveries=loaded.deliveries,
            ended_at_unix_s=self._store.now_unix_s(),
        )
        outcome = await self._store_job(loaded, command, ended)
        if isinstance(outcome, LineStored):
            await self._client.forget(request_id)
        return outcome

    async def fail_line(self, loaded: LoadedLine, command: FailLine) -> LineStored | LinePutOff:
        """Store that a line ends without a response."""
        ended = BatchLineEnded(
            batch_id=loaded.batch_id,
            line=command.line,
            custom_id=loaded.content.custom_id,
            request_id=line_request_id(loaded.batch_id, command.line),
            failure=LineFailure(code=command.code, message=command.message[:1024]),
        )
        return await self._store_line(ended, loaded, command)

    async def fail_job(self, loaded: LoadedJob, command: FailLine) -> LineStored | LinePutOff:
        """Store that a job ends without an answer."""
        is_expired = command.code == FailReason.EXPIRED
        reason = FailReason.EXPIRED if is_expired else FailReason.ENGINE_ERROR
        ended = self._job_failed(loaded, reason, command.message)
        return await self._store_job(loaded, command, ended)

    # ------------------------------------------------------------------ asking

    async def _answer(
        self, loaded: LoadedLine, command: StartLine, request_id: str, order: Order
    ) -> LineStored | LinePutOff:
        submissions = [
            submission.model_copy(update={"tenant": loaded.tenant, "priority": command.priority})
            for submission in order.submissions
        ]
        answers = await all_of([self._tokens(order.model, one) for one in submissions])
        choices = [_choice(index, tokens, stream) for index, (tokens, stream) in enumerate(answers)]
        usage = order.usage(
            prompt_tokens=[stream.prompt_tokens or 0 for _, stream in answers],
            completion_tokens=sum(len(tokens) for tokens, _ in answers),
        )
        body = order.form.whole(choices, usage=usage)
        ended = BatchLineEnded(
            batch_id=loaded.batch_id,
            line=command.line,
            custom_id=loaded.content.custom_id,
            request_id=request_id,
            status_code=STATUS_OK,
            body_json=_json(body),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )
        outcome = await self._store_line(ended, loaded, command)
        if isinstance(outcome, LineStored):
            for submission in submissions:
                await self._client.forget(submission.request_id)
        return outcome

    async def _tokens(
        self, model: str, submission: SubmitRequest
    ) -> tuple[Sequence[Token], TokenStream]:
        """Return a whole answer. Raises: RequestRefused, RequestFailedError, Unavailable."""
        stream = self._client.submit(model, submission)
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

    # ------------------------------------------------------------------ storing

    async def _store_refusal(
        self, loaded: LoadedLine, command: StartLine, request_id: str, error: ApiError
    ) -> LineStored | LinePutOff:
        ended = BatchLineEnded(
            batch_id=loaded.batch_id,
            line=command.line,
            custom_id=loaded.content.custom_id,
            request_id=request_id,
            status_code=error.answer.status,
            body_json=_json(error.answer.envelope()),
        )
        return await self._store_line(ended, loaded, command)

    async def _store_line(
        self, ended: BatchLineEnded, loaded: LoadedLine, command: StartLine | FailLine
    ) -> LineStored | LinePutOff:
        if len(ended.body_json) > BODY_INLINE_BYTES_MAX:
            key = body_blob_key(ended.batch_id, ended.line)
            body = ended.body_json.encode()
            try:
                await write_whole(self._blobs, key, body)
            except Unavailable:
                return _put_off(command)
            ended = ended.model_copy(update={"body_json": "", "body_blob": key})
        if not await self._stored(lambda: self._store.store_line(ended, part=loaded.part)):
            return _put_off(command)
        return LineStored(
            part_key=command.part_key,
            line=command.line,
            is_completed=ended.is_completed,
            prompt_tokens=ended.prompt_tokens,
            answer_tokens=ended.completion_tokens,
            cause_id=command.cause_id,
        )

    def _job_failed(
        self, loaded: LoadedJob, reason: FailReason | RejectReason, message: str
    ) -> JobEnded:
        return JobEnded(
            request_id=loaded.job.request.request_id,
            fail_reason=reason,
            message=message,
            deliveries=loaded.deliveries,
            ended_at_unix_s=self._store.now_unix_s(),
        )

    async def _store_job(
        self, loaded: LoadedJob, command: StartLine | FailLine, ended: JobEnded
    ) -> LineStored | LinePutOff:
        try:
            is_stored = await self._stored(lambda: self._store.store_job(loaded.alias, ended))
        except PayloadTooLarge as error:
            ended = self._job_failed(loaded, RejectReason.TOO_LARGE, f"the answer: {error}")
            is_stored = await self._stored(lambda: self._store.store_job(loaded.alias, ended))
        if not is_stored:
            return _put_off(command)
        return LineStored(
            part_key=command.part_key,
            line=command.line,
            is_completed=ended.finish_reason is not None,
            prompt_tokens=ended.prompt_tokens,
            answer_tokens=ended.completion_tokens,
            cause_id=command.cause_id,
        )

    async def _stored(self, store: Callable[[], Awaitable[None]]) -> bool:
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


def line_request_id(batch_id: str, line: int, *, attempt: int = 0) -> str:
    """Return the request id of a line; each attempt after a failure has its own."""
    digest = hashlib.blake2b(batch_id.encode(), digest_size=DIGEST_BYTES).hexdigest()
    again = f"-again{attempt}" if attempt else ""
    return f"line-{digest}-{line}{again}"


def body_blob_key(batch_id: str, line: int) -> str:
    """Return where a body lies that is too long for a message."""
    return f"line-{batch_id.removeprefix('batch_')}-{line}"


def _choice(index: int, tokens: Sequence[Token], stream: TokenStream) -> tuple[Piece, Ended]:
    assert stream.finish_reason is not None
    return (
        Piece(choice_index=index, tokens=tokens, characters_before=0),
        Ended(choice_index=index, finish_reason=stream.finish_reason),
    )


def _expires_after_ms(command: StartLine) -> int:
    return min(max(1, command.expires_after_ns // NS_PER_MS), EXPIRES_AFTER_MS_MAX)


def _put_off(command: StartLine | FailLine, *, is_congestion: bool = False) -> LinePutOff:
    return LinePutOff(
        part_key=command.part_key,
        line=command.line,
        is_congestion=is_congestion,
        cause_id=command.cause_id,
    )


def _failed(command: StartLine, failure: RequestFailedError) -> LinePutOff:
    """An expired request is put off: by then its deadline has passed, and that is what counts."""
    is_expired = failure.reason is FailReason.EXPIRED
    return LinePutOff(
        part_key=command.part_key,
        line=command.line,
        failure="" if is_expired else f"{failure.reason}: {failure}",
        cause_id=command.cause_id,
    )


def _json(body: JsonObject) -> str:
    """Return the body as the gateway writes it."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

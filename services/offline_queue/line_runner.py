"""Has the fleet answer one line, and stores how it ended; decides nothing about retries.

The request id is a function of batch and line: whoever asks again, after whatever died, asks for
the same session, which the routers' journals have kept.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from libs.client.answers import Token
from libs.client.errors import RequestFailedError, RequestRefused
from libs.client.together import all_of
from libs.client.token_stream import TokenStream
from libs.contracts.batches import STATUS_OK, BatchLineEnded, LineFailure
from libs.kernel.errors import Unavailable
from libs.kernel.units import KIB
from libs.openai_api.answer_form import Ended, JsonObject, Piece
from libs.openai_api.errors import ApiError, from_exception
from libs.openai_api.orders import Order, Orders
from libs.openai_api.text_questions import TextQuestions
from libs.runtime.blob_store import BlobStore, write_whole
from services.offline_queue.asking import (
    Asking,
    expires_after_ms,
    failed,
    put_off,
    refused,
    stored_at_last,
)
from services.offline_queue.commands import FailLine, StartLine
from services.offline_queue.events import LinePutOff, LineStored
from services.offline_queue.line_file import BatchLine
from services.offline_queue.store import OfflineStore

BODY_INLINE_BYTES_MAX: Final = 256 * KIB
"""A longer body goes to the blob store."""
DIGEST_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedLine:
    """A line and where it belongs."""

    batch_id: str
    part: int
    tenant: str
    content: BatchLine


class LineRunner:
    """Runs lines of batches."""

    def __init__(self, asking: Asking, store: OfflineStore, blobs: BlobStore) -> None:
        self._asking = asking
        self._store = store
        self._blobs = blobs
        self._text = TextQuestions(asking.client)

    async def run(self, loaded: LoadedLine, command: StartLine) -> LineStored | LinePutOff:
        """Answer a line of a batch."""
        request_id = line_request_id(loaded.batch_id, command.line, attempt=command.attempt)
        orders = Orders(text=self._text, expires_after_ms=expires_after_ms(command))
        try:
            order = await orders.order(
                loaded.content.request,
                request_id=request_id,
                created_at_unix_s=self._store.now_unix_s(),
            )
        except ApiError as error:
            if error.answer.retry_after_ns is not None or error.answer.status >= 500:
                return put_off(command)
            return await self._store_refusal(loaded, command, request_id, error)
        try:
            return await self._answer(loaded, command, request_id, order)
        except RequestRefused as refusal:
            later = refused(command, refusal)
            if later is not None:
                return later
            told = from_exception(refusal, prompt_parameter=order.prompt_parameter)
            return await self._store_refusal(loaded, command, request_id, ApiError(told))
        except RequestFailedError as failure:
            return failed(command, failure)
        except Unavailable:
            return put_off(command)

    async def fail(self, loaded: LoadedLine, command: FailLine) -> LineStored | LinePutOff:
        """Store that a line ends without a response."""
        ended = BatchLineEnded(
            batch_id=loaded.batch_id,
            line=command.line,
            custom_id=loaded.content.custom_id,
            request_id=line_request_id(loaded.batch_id, command.line),
            failure=LineFailure(code=command.code, message=command.message[:1024]),
        )
        return await self._store_line(ended, loaded, command)

    # ------------------------------------------------------------------ asking

    async def _answer(
        self, loaded: LoadedLine, command: StartLine, request_id: str, order: Order
    ) -> LineStored | LinePutOff:
        submissions = [
            submission.model_copy(update={"tenant": loaded.tenant, "priority": command.priority})
            for submission in order.submissions
        ]
        answers = await all_of([self._asking.tokens(order.model, one) for one in submissions])
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
            await self._asking.forget(submissions)
        return outcome

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
                return put_off(command)
            ended = ended.model_copy(update={"body_json": "", "body_blob": key})
        if not await stored_at_last(lambda: self._store.store_line(ended, part=loaded.part)):
            return put_off(command)
        return LineStored(
            part_key=command.part_key,
            line=command.line,
            is_completed=ended.is_completed,
            prompt_tokens=ended.prompt_tokens,
            answer_tokens=ended.completion_tokens,
            cause_id=command.cause_id,
        )


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


def _json(body: JsonObject) -> str:
    """Return the body as the gateway writes it."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

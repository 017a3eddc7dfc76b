"""Answers questions about batches: submit, cancel, pause, resume. Each answer is durable first."""

import asyncio
from typing import Final, assert_never

import structlog

from libs.contracts import subjects
from libs.contracts.batches import (
    BATCH_QUESTIONS,
    ENDPOINTS,
    BatchAccepted,
    BatchAnswer,
    BatchQuestion,
    BatchRecord,
    BatchRejected,
    BatchRejectReason,
    BatchStatus,
    CancelBatch,
    FilePurpose,
    PauseBatch,
    ResumeBatch,
    SubmitBatch,
)
from libs.contracts.wire import encode, encoding_of
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.bus import Bus, BusMessage, StreamFull, StreamMissing, Subscription
from services.offline_queue.records import (
    CancelAsked,
    PauseAsked,
    is_same_question,
    new_record,
    window_s,
)
from services.offline_queue.store import OfflineStore

QUESTIONS_MAX: Final = 64
"""Answered at once; others wait at the subscription."""
RETRY_AFTER_MS: Final = NS_PER_S // NS_PER_MS

_log = structlog.get_logger(__name__)


class Desk:
    """Answers for the whole group of queues."""

    def __init__(self, bus: Bus, store: OfflineStore) -> None:
        self._bus = bus
        self._store = store

    async def subscribe(self) -> Subscription:
        """Listen; the broker knows of it when this returns."""
        return await self._bus.subscribe(
            subjects.BATCH_CONTROL, queue_group=subjects.OFFLINE_QUEUE_GROUP
        )

    async def run(self, questions: Subscription) -> None:
        """Answer until the subscription is closed."""
        room = asyncio.Semaphore(QUESTIONS_MAX)
        async with asyncio.TaskGroup() as tasks:
            async for message in questions:
                await room.acquire()
                task = tasks.create_task(self._reply(message))
                task.add_done_callback(lambda _: room.release())

    async def _reply(self, message: BusMessage) -> None:
        if message.reply_to is None:
            return
        answer = await self._answer(message.payload)
        payload = encode(answer, encoding=encoding_of(message.payload))
        try:
            await self._bus.publish(message.reply_to, payload)
        except Unavailable:
            return  # It will be asked again.

    async def _answer(self, payload: bytes) -> BatchAnswer:
        try:
            question = BATCH_QUESTIONS.decode(payload)
        except ContractViolation as violation:
            return BatchRejected(reason=BatchRejectReason.MALFORMED, message=str(violation))
        try:
            answer = await self.answer(question)
        except StreamFull:
            return _later(BatchRejectReason.FULL, "too much offline work is waiting")
        except (Unavailable, StreamMissing) as error:
            return _later(BatchRejectReason.UNAVAILABLE, str(error))
        _log.info(
            "question_answered",
            question=type(question).__name__,
            batch_id=question.batch_id,
            answer=answer.reason if isinstance(answer, BatchRejected) else answer.record.status,
        )
        return answer

    async def answer(self, question: BatchQuestion) -> BatchAnswer:
        """Do what is asked and return the answer. Raises: Unavailable, StreamFull."""
        match question:
            case SubmitBatch():
                return await self._submit(question)
            case CancelBatch():
                return await self._cancel(question)
            case PauseBatch():
                return await self._pause(question.batch_id, is_paused=True)
            case ResumeBatch():
                return await self._pause(question.batch_id, is_paused=False)
            case _:
                assert_never(question)

    async def _submit(self, question: SubmitBatch) -> BatchAnswer:
        present = await self._store.batches.get(question.batch_id)
        if present is not None:
            return _repeated(present, question)
        window = window_s(question.completion_window)
        if window is None:
            return _invalid("completion_window: such as 24h, 90m or 45s", "completion_window")
        if question.endpoint not in ENDPOINTS:
            return _invalid(f"endpoint: one of {', '.join(ENDPOINTS)}", "endpoint")
        refusal = await self._file_refusal(question)
        if refusal is not None:
            return refusal
        asked = new_record(question, window=window, now_unix_s=self._store.now_unix_s())
        record = await self._store.create_batch(asked)
        if record != asked:
            return _repeated(record, question)
        # A crash before the next line is mended by the first survey of the batch.
        await self._store.append_task(record.batch_id)
        return BatchAccepted(record=record)

    async def _file_refusal(self, question: SubmitBatch) -> BatchRejected | None:
        file = await self._store.files.get(question.input_file_id)
        if file is None or file.tenant != question.tenant:
            message = "input_file_id: there is no such file"
            return BatchRejected(
                reason=BatchRejectReason.FILE_NOT_FOUND, message=message, parameter="input_file_id"
            )
        if file.purpose is not FilePurpose.BATCH:
            return _invalid("input_file_id: the file's purpose must be batch", "input_file_id")
        return None

    async def _cancel(self, question: CancelBatch) -> BatchAnswer:
        before = await self._store.batches.get(question.batch_id)
        if before is None:
            return _not_found()
        after = await self._store.change(question.batch_id, CancelAsked())
        if after is None:
            return _not_found()
        if before.status is BatchStatus.CANCELLING or after.status is not BatchStatus.CANCELLING:
            message = f"the batch is {after.status}: there is nothing to cancel"
            return BatchRejected(reason=BatchRejectReason.CONFLICT, message=message)
        await self._store.append_task(question.batch_id)
        return BatchAccepted(record=after)

    async def _pause(self, batch_id: str, *, is_paused: bool) -> BatchAnswer:
        after = await self._store.change(batch_id, PauseAsked(is_paused=is_paused))
        return _not_found() if after is None else BatchAccepted(record=after)


def _repeated(record: BatchRecord, question: SubmitBatch) -> BatchAnswer:
    if is_same_question(record, question):
        return BatchAccepted(record=record)
    message = "batch_id: another batch has this id"
    return BatchRejected(reason=BatchRejectReason.CONFLICT, message=message, parameter="batch_id")


def _invalid(message: str, parameter: str) -> BatchRejected:
    return BatchRejected(reason=BatchRejectReason.INVALID, message=message, parameter=parameter)


def _not_found() -> BatchRejected:
    message = "batch_id: there is no such batch"
    return BatchRejected(
        reason=BatchRejectReason.BATCH_NOT_FOUND, message=message, parameter="batch_id"
    )


def _later(reason: BatchRejectReason, message: str) -> BatchRejected:
    return BatchRejected(reason=reason, message=message, retry_after_ms=RETRY_AFTER_MS)

"""Files and batches as their users see them: records to read, questions to the offline queue.

Whatever changes a batch is asked of the queue that owns it, and asked again until it is answered;
what is known of files and batches is read from their buckets. Nothing is kept here, so that any
client answers any question.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from libs.client.records import Records
from libs.contracts import subjects
from libs.contracts.batches import (
    BATCH_ANSWERS,
    BATCH_RECORDS,
    FILE_RECORDS,
    BatchAccepted,
    BatchQuestion,
    BatchRecord,
    BatchRejected,
    BatchRejectReason,
    BatchStatus,
    CancelBatch,
    FileRecord,
)
from libs.contracts.wire import encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S, seconds
from libs.runtime.bus import Bus
from libs.runtime.clock import Clock, SystemClock


class BatchRefused(Exception):
    """Nothing was done."""

    def __init__(
        self,
        message: str,
        *,
        reason: BatchRejectReason,
        parameter: str | None = None,
        retry_after_ns: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        """Why, from a closed list."""
        self.parameter = parameter
        """The field at fault, where there is one."""
        self.retry_after_ns = retry_after_ns
        """When the same question may succeed; None means never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskOptions:
    """How patient a client is with the queue."""

    patience_ns: int = 10 * NS_PER_S
    """Where no queue answers: longer than the broker may need to elect a leader."""
    answer_timeout_ns: int = 5 * NS_PER_S
    """After this long without an answer the question is asked again."""
    pause_ns: int = 200 * NS_PER_MS
    """Before that."""


class BatchClient:
    """Asks the offline queue and reads the buckets. Every method may raise Unavailable."""

    def __init__(
        self,
        bus: Bus,
        *,
        options: AskOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._bus = bus
        self._options = options or AskOptions()
        self._clock = clock or SystemClock()
        self.files: Records[FileRecord] = Records(bus, subjects.FILE_BUCKET, FILE_RECORDS)
        """What is known of files; the bytes lie in the blob store."""
        self.batches: Records[BatchRecord] = Records(bus, subjects.BATCH_BUCKET, BATCH_RECORDS)
        """What is known of batches; written by the queue alone."""

    async def ask(self, question: BatchQuestion) -> BatchRecord:
        """Have a queue do this, and return the batch as it is then.

        Asked again while nobody answers, which never makes a second batch: its id is the same.
        Raises: BatchRefused; Unavailable if no queue answers in time.
        """
        until_ns = self._clock.now_ns() + self._options.patience_ns
        is_repeat = False
        while True:
            try:
                answer = await self._answer(question)
                break
            except Unavailable as error:
                if self._clock.now_ns() >= until_ns:
                    message = f"no offline queue answers: {error}"
                    raise Unavailable(message, retry_after_ns=NS_PER_S) from error
                await asyncio.sleep(seconds(self._options.pause_ns))
                is_repeat = True
        if isinstance(answer, BatchAccepted):
            return answer.record
        if is_repeat and isinstance(question, CancelBatch):
            record = await self.batches.get(question.batch_id)
            if record is not None and record.status in _CANCELLED:
                return record  # It was this question that cancelled it; its answer was lost.
        raise _refusal(answer)

    async def open_batch_of(self, file_id: str) -> BatchRecord | None:
        """Return a batch that is not final and reads this file, if there is one."""
        return await self.batches.first(
            is_wanted=lambda batch: batch.input_file_id == file_id and not batch.status.is_final
        )

    async def _answer(self, question: BatchQuestion) -> BatchAccepted | BatchRejected:
        reply = await self._bus.request(
            subjects.BATCH_CONTROL, encode(question), timeout_ns=self._options.answer_timeout_ns
        )
        try:
            return BATCH_ANSWERS.decode(reply.payload)
        except ContractViolation as violation:
            raise Unavailable(str(violation), retry_after_ns=NS_PER_S) from violation


_CANCELLED: Final = (BatchStatus.CANCELLING, BatchStatus.CANCELLED)


def _refusal(rejected: BatchRejected) -> BatchRefused:
    retry_after_ms = rejected.retry_after_ms
    return BatchRefused(
        rejected.message,
        reason=rejected.reason,
        parameter=rejected.parameter,
        retry_after_ns=None if retry_after_ms is None else retry_after_ms * NS_PER_MS,
    )

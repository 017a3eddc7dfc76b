"""An offline queue without a fleet: answers questions about batches, and lines from a script.

It keeps the contract of a queue towards gateways: batches by compare-and-set, idempotent
submissions, cancelled ones refused a second cancellation, output files in the blob store. It does
not validate lines: that is the queue's own work, tested there.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from libs.client.batch_ids import new_file_id
from libs.client.records import BUCKET_BYTES_MAX
from libs.contracts import subjects
from libs.contracts.batches import (
    BATCH_FILE_BYTES_MAX,
    BATCH_QUESTIONS,
    BATCH_RECORDS,
    BatchAccepted,
    BatchAnswer,
    BatchCounts,
    BatchQuestion,
    BatchRecord,
    BatchRejected,
    BatchRejectReason,
    BatchStatus,
    CancelBatch,
    FilePurpose,
    FileRecord,
    PauseBatch,
    ResumeBatch,
    SubmitBatch,
)
from libs.contracts.wire import encode
from libs.runtime.blob_store import BlobStore, read_whole, write_whole
from libs.runtime.bus import Bus, KeyValue

Line = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class QueueScript:
    """How the queue behaves."""

    answer: Callable[[Line], Line | None] | None = None
    """The response body for a line, None where it fails; without a function nothing ends."""
    answers_lost: int = 0
    """So many questions are acted upon and not answered."""
    refusal: BatchRejected | None = None
    questions: list[BatchQuestion] = field(default_factory=list)
    """All that were asked, repeats included."""


class ScriptedQueue:
    """Owns BATCH_CONTROL on a bus. Use `serving`."""

    def __init__(self, bus: Bus, blobs: BlobStore, script: QueueScript) -> None:
        self.script = script
        self._bus = bus
        self._blobs = blobs

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ScriptedQueue"]:
        """Answer until the block is left."""
        questions = await self._bus.subscribe(
            subjects.BATCH_CONTROL, queue_group=subjects.OFFLINE_QUEUE_GROUP
        )

        async def serve() -> None:
            async for message in questions:
                answer = await self._answer(BATCH_QUESTIONS.decode(message.payload))
                if self.script.answers_lost > 0:
                    self.script.answers_lost -= 1
                elif message.reply_to is not None:
                    await self._bus.publish(message.reply_to, encode(answer))

        async with asyncio.TaskGroup() as group:
            serving = group.create_task(serve())
            try:
                yield self
            finally:
                serving.cancel()
                await questions.close()

    async def change(self, batch_id: str, **changes: Any) -> BatchRecord:
        """Give a batch these fields."""
        bucket = await self._batches()
        entry = await bucket.get(batch_id)
        assert entry is not None
        record = BATCH_RECORDS.decode(entry.value).model_copy(update=changes)
        await bucket.update(batch_id, encode(record), revision=entry.revision)
        return record

    async def _answer(self, question: BatchQuestion) -> BatchAnswer:
        self.script.questions.append(question)
        if self.script.refusal is not None:
            return self.script.refusal
        if isinstance(question, SubmitBatch):
            return BatchAccepted(record=await self._submitted(question))
        entry = await (await self._batches()).get(question.batch_id)
        if entry is None:
            return _rejected(BatchRejectReason.BATCH_NOT_FOUND, "there is no such batch")
        record = BATCH_RECORDS.decode(entry.value)
        match question:
            case CancelBatch():
                if record.status.is_final or record.status is BatchStatus.CANCELLING:
                    message = f"the batch is {record.status} already"
                    return _rejected(BatchRejectReason.CONFLICT, message)
                changes = {"status": BatchStatus.CANCELLED, "cancelled_at_unix_s": _now()}
            case PauseBatch():
                changes = {"is_paused": True}
            case ResumeBatch():
                changes = {"is_paused": False}
        return BatchAccepted(record=await self.change(record.batch_id, **changes))

    async def _submitted(self, question: SubmitBatch) -> BatchRecord:
        bucket = await self._batches()
        entry = await bucket.get(question.batch_id)
        if entry is not None:
            return BATCH_RECORDS.decode(entry.value)
        record = BatchRecord(
            **question.model_dump(exclude={"type"}),
            status=BatchStatus.IN_PROGRESS,
            created_at_unix_s=_now(),
            in_progress_at_unix_s=_now(),
            deadline_at_unix_s=_now() + 86_400,
        )
        await bucket.create(record.batch_id, encode(record))
        if self.script.answer is None:
            return record
        return await self.change(record.batch_id, **await self._ended(record, self.script.answer))

    async def _ended(
        self, record: BatchRecord, answer: Callable[[Line], Line | None]
    ) -> dict[str, Any]:
        content = await read_whole(
            self._blobs, record.input_file_id, bytes_max=BATCH_FILE_BYTES_MAX
        )
        good, bad = [], []
        for number, text in enumerate(content.splitlines()):
            line = json.loads(text)
            body = answer(line["body"])
            ended = {
                "id": f"batch_req_{number}",
                "custom_id": line["custom_id"],
                "response": {"status_code": 200, "request_id": str(number), "body": body},
                "error": None,
            }
            if body is None:
                error = {"code": "scripted", "message": "the script says no"}
                bad.append({**ended, "response": None, "error": error})
            else:
                good.append(ended)
        return {
            "status": BatchStatus.COMPLETED,
            "completed_at_unix_s": _now(),
            "output_file_id": await self._written("output", good, record.tenant),
            "error_file_id": await self._written("errors", bad, record.tenant),
            "counts": BatchCounts(total=len(good) + len(bad), completed=len(good), failed=len(bad)),
        }

    async def _written(self, name: str, lines: list[Line], tenant: str) -> str | None:
        if not lines:
            return None
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file_id = new_file_id(now_unix_ns=time.time_ns())
        await write_whole(self._blobs, file_id, content)
        record = FileRecord(
            file_id=file_id,
            purpose=FilePurpose.BATCH_OUTPUT,
            file_name=f"{name}.jsonl",
            size_bytes=len(content),
            created_at_unix_s=_now(),
            tenant=tenant,
        )
        files = await self._bus.ensure_bucket(subjects.FILE_BUCKET, bytes_max=BUCKET_BYTES_MAX)
        await files.create(file_id, encode(record))
        return file_id

    async def _batches(self) -> KeyValue:
        return await self._bus.ensure_bucket(subjects.BATCH_BUCKET, bytes_max=BUCKET_BYTES_MAX)


def _rejected(reason: BatchRejectReason, message: str) -> BatchRejected:
    return BatchRejected(reason=reason, message=message)


def _now() -> int:
    return int(time.time())

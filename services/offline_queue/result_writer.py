"""Writes the output and error file of a batch out of what is stored of its lines."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from libs.contracts.batches import (
    BatchLineEnded,
    BatchRecord,
    BatchStatus,
    FilePurpose,
    FileRecord,
)
from libs.runtime.blob_store import BlobMissing, BlobStore, BlobWriter, read_whole
from services.offline_queue.line_runner import body_blob_key, line_request_id
from services.offline_queue.reading import FilePart, custom_id_of, read_parts
from services.offline_queue.records import result_file_id
from services.offline_queue.result_files import CANCELLED, EXPIRED, result_line
from services.offline_queue.store import OfflineStore

BODY_BYTES_MAX: Final = 512 * 1000 * 1000

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class BatchResults:
    """What goes into the record when the files are written."""

    completed: int = 0
    failed: int = 0
    missing: int = 0
    tokens_prompt: int = 0
    tokens_generated: int = 0
    blobs: list[str] = field(default_factory=list)


class ResultWriter:
    """Writes the files of one batch after the other; whoever writes them again writes the same."""

    def __init__(self, store: OfflineStore, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs

    async def write(
        self, record: BatchRecord, results: BatchResults
    ) -> tuple[str | None, str | None] | None:
        """Write and count what there is; return the ids of output and error file, None for an
        empty one.

        Returns None if another clerk was faster: only as long as the batch is not final, all that
        was read was complete, because results are removed after that.
        """
        if record.counts.total == 0:  # cancelled before it was validated
            return None, None
        output_id = result_file_id(record, "output")
        error_id = result_file_id(record, "error")
        async with (
            await self._blobs.create(output_id) as output,
            await self._blobs.create(error_id) as errors,
        ):
            async for part in self._parts(record):
                ended = await self._store.lines_ended(record.batch_id, part.part)
                await self._write_part(record, part, ended, results, output, errors)
            now = await self._store.batches.get(record.batch_id)
            if now is None or now.status.is_final:
                return None
            is_output = results.completed > 0
            is_error = results.failed + results.missing > 0
            if is_output:
                await self._publish(record, output, output_id, kind="output")
            if is_error:
                await self._publish(record, errors, error_id, kind="error")
        return output_id if is_output else None, error_id if is_error else None

    async def _parts(self, record: BatchRecord) -> AsyncIterator[FilePart]:
        """Yield the parts of the file; if it is gone, those of which lines have ended."""
        try:
            async for part in read_parts(self._blobs, record.input_file_id):
                yield part
        except BlobMissing:
            _log.warning("input_file_gone", batch_id=record.batch_id)
            for number in await self._store.parts_with_results(record.batch_id):
                yield FilePart(part=number, lines=())

    async def _write_part(
        self,
        record: BatchRecord,
        part: FilePart,
        ended: Mapping[int, BatchLineEnded],
        results: BatchResults,
        output: BlobWriter,
        errors: BlobWriter,
    ) -> None:
        for raw in part.lines:
            if raw.number not in ended:
                results.missing += 1
                custom_id = custom_id_of(raw, endpoint=record.endpoint)
                missing = _missing(record, raw.number, custom_id)
                await errors.write(result_line(missing, body_json=""))
        for number in sorted(ended):
            line = ended[number]
            results.tokens_prompt += line.prompt_tokens
            results.tokens_generated += line.completion_tokens
            written = result_line(line, body_json=await self._body(line, results))
            if line.is_completed:
                results.completed += 1
                await output.write(written)
            else:
                results.failed += 1
                await errors.write(written)

    async def _body(self, line: BatchLineEnded, results: BatchResults) -> str:
        if not line.body_blob:
            return line.body_json
        results.blobs.append(body_blob_key(line.batch_id, line.line))
        try:
            body = await read_whole(self._blobs, line.body_blob, bytes_max=BODY_BYTES_MAX)
        except BlobMissing:
            return "null"
        return body.decode()

    async def _publish(
        self, record: BatchRecord, writer: BlobWriter, file_id: str, *, kind: str
    ) -> None:
        size_bytes = await writer.commit()
        now_unix_s = self._store.now_unix_s()
        lives_s = record.output_expires_after_s
        await self._store.files.put(
            file_id,
            FileRecord(
                file_id=file_id,
                purpose=FilePurpose.BATCH_OUTPUT,
                file_name=f"{record.batch_id}_{kind}.jsonl",
                size_bytes=size_bytes,
                created_at_unix_s=now_unix_s,
                expires_at_unix_s=None if lives_s is None else now_unix_s + lives_s,
                tenant=record.tenant,
            ),
        )


def _missing(record: BatchRecord, line: int, custom_id: str) -> BatchLineEnded:
    is_cancelled = record.status is BatchStatus.CANCELLING
    return BatchLineEnded(
        batch_id=record.batch_id,
        line=line,
        custom_id=custom_id,
        request_id=line_request_id(record.batch_id, line),
        failure=CANCELLED if is_cancelled else EXPIRED,
    )

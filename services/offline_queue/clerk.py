"""Carries out tasks: looks at a batch and does what its status asks for.

    VALIDATING                            judge the file, put its parts into the stream
    IN_PROGRESS, no part left or too late write its files: COMPLETED or EXPIRED
    CANCELLING                            write its files: CANCELLED
    FINALIZING                            go on writing its files

Everything may be done twice, by two clerks at once: parts and files are functions of the record
and of what is stored, and only one compare-and-set moves the record on.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from libs.contracts.batches import (
    BATCH_FILE_BYTES_MAX,
    BATCH_LINES_MAX,
    BATCH_TASKS,
    BatchCounts,
    BatchPart,
    BatchRecord,
    BatchStatus,
    LineError,
)
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.blob_store import BlobMissing, BlobStore
from libs.runtime.bus import Lease, LeaseConsumer, StreamFull, StreamMissing
from services.offline_queue.file_judge import Verdict
from services.offline_queue.reading import judge_file
from services.offline_queue.records import (
    Finalized,
    FinalizingBegun,
    Invalid,
    Validated,
)
from services.offline_queue.result_writer import BatchResults, ResultWriter
from services.offline_queue.store import OfflineStore

FETCH_NS: Final = 5 * NS_PER_S
AGAIN_AFTER_NS: Final = 2 * NS_PER_S
TASK_DELIVERIES_MAX: Final = 20
"""A task that was leased more often has ended its clerks every time: the batch fails instead."""

_log = structlog.get_logger(__name__)


class Clerk:
    """Leases tasks, one at a time."""

    def __init__(self, store: OfflineStore, blobs: BlobStore, *, lease_ns: int) -> None:
        self._store = store
        self._blobs = blobs
        self._keep_ns = lease_ns // 3
        self._writer = ResultWriter(store, blobs)

    async def run(self, stopping: asyncio.Event) -> None:
        """Carry out tasks until told to stop."""
        tasks: LeaseConsumer | None = None
        while not stopping.is_set():
            try:
                tasks = tasks or await self._store.tasks()
                for lease in await tasks.fetch(1, timeout_ns=FETCH_NS):
                    await self._carry_out(lease)
            except (Unavailable, StreamMissing):
                tasks = None
                await asyncio.sleep(seconds(AGAIN_AFTER_NS))

    async def _carry_out(self, lease: Lease) -> None:
        try:
            task = BATCH_TASKS.decode(lease.message.payload)
        except ContractViolation as violation:
            _log.warning("task_unreadable", error=str(violation))
            await lease.term()
            return
        try:
            async with self._kept(lease):
                if lease.delivery_count > TASK_DELIVERIES_MAX:
                    await self._give_up(task.batch_id)
                else:
                    await self.look_at(task.batch_id)
        except (Unavailable, StreamFull) as error:
            _log.warning("task_put_off", batch_id=task.batch_id, error=str(error))
        # Put off or done: the next survey asks again if need be, and only crashes are counted.
        await lease.ack()

    async def _give_up(self, batch_id: str) -> None:
        message = f"gave up after {TASK_DELIVERIES_MAX} attempts; see the logs of the queues"
        error = LineError(code="server_error", message=message)
        await self._store.change(batch_id, Invalid(errors=(error,)))
        _log.error("batch_given_up", batch_id=batch_id)

    async def look_at(self, batch_id: str) -> None:
        """Do what the batch needs now. Raises: Unavailable, StreamFull."""
        record = await self._store.batches.get(batch_id)
        if record is None or record.status.is_final:
            await self._store.remove_work(batch_id)
            await self._store.remove_results(batch_id)
        elif record.status is BatchStatus.VALIDATING:
            await self._validate(record)
        elif record.status is not BatchStatus.IN_PROGRESS or await self._is_over(record):
            await self._finalize(record)

    @asynccontextmanager
    async def _kept(self, lease: Lease) -> AsyncIterator[None]:
        """Keep the lease while the block runs."""

        async def keep() -> None:
            while True:
                await asyncio.sleep(seconds(self._keep_ns))
                with contextlib.suppress(Unavailable):
                    await lease.in_progress()

        keeping = asyncio.create_task(keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _is_over(self, record: BatchRecord) -> bool:
        parts_left, _ = await self._store.work_left(record.batch_id)
        return parts_left == 0 or record.deadline_at_unix_s <= self._store.now_unix_s()

    # ------------------------------------------------------------------ validation

    async def _validate(self, record: BatchRecord) -> None:
        size_bytes = await self._blobs.size_bytes(record.input_file_id)
        if size_bytes is None:
            await self._refuse(record, "file_not_found", "the input file is gone")
            return
        if size_bytes > BATCH_FILE_BYTES_MAX:
            message = f"a batch's file has at most {BATCH_FILE_BYTES_MAX} bytes"
            await self._refuse(record, "file_too_large", message)
            return
        try:
            verdict = await judge_file(self._blobs, record.input_file_id, endpoint=record.endpoint)
        except BlobMissing:
            await self._refuse(record, "file_not_found", "the input file is gone")
            return
        if verdict.errors or verdict.alias is None or verdict.lines > BATCH_LINES_MAX:
            await self._store.change(record.batch_id, Invalid(errors=tuple(verdict.errors)))
            _log.info("batch_invalid", batch_id=record.batch_id, errors=len(verdict.errors))
            return
        await self._begin(record, verdict, alias=verdict.alias)

    async def _begin(self, record: BatchRecord, verdict: Verdict, *, alias: str) -> None:
        """Put the parts into the stream, then say that they are there."""
        for part in verdict.parts:
            await self._store.append_part(
                BatchPart(
                    batch_id=record.batch_id,
                    part=part.part,
                    first_line=part.first_line,
                    first_byte=part.first_byte,
                    size_bytes=part.size_bytes,
                )
            )
        validated = Validated(
            alias=alias, lines=verdict.lines, tokens_predicted=verdict.tokens_predicted
        )
        begun = await self._store.change(record.batch_id, validated)
        if begun is None or begun.status is not BatchStatus.IN_PROGRESS:
            await self._store.remove_work(record.batch_id)  # cancelled meanwhile
            return
        _log.info("batch_validated", batch_id=record.batch_id, lines=verdict.lines)

    async def _refuse(self, record: BatchRecord, code: str, message: str) -> None:
        error = LineError(code=code, message=message)
        await self._store.change(record.batch_id, Invalid(errors=(error,)))

    # ------------------------------------------------------------------ the files

    async def _finalize(self, record: BatchRecord) -> None:
        begun = await self._store.change(record.batch_id, FinalizingBegun())
        if begun is None or begun.status.is_final:
            return
        await self._store.remove_work(begun.batch_id)
        results = BatchResults()
        files = await self._writer.write(begun, results)
        if files is None:
            return
        output_id, error_id = files
        ended = await self._store.change(
            begun.batch_id,
            Finalized(
                counts=BatchCounts(
                    total=begun.counts.total, completed=results.completed, failed=results.failed
                ),
                tokens_prompt=results.tokens_prompt,
                tokens_generated=results.tokens_generated,
                output_file_id=output_id,
                error_file_id=error_id,
            ),
        )
        await self._store.remove_results(begun.batch_id)
        for key in results.blobs:
            await self._blobs.delete(key)
        _log.info(
            "batch_ended",
            batch_id=begun.batch_id,
            status=None if ended is None else ended.status,
            completed=results.completed,
            failed=results.failed,
            missing=results.missing,
        )

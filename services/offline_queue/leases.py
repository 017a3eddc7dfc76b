"""Parts and jobs that this queue has leased, with what their lines ask; the lease is kept here.

The core knows them by key. A part that comes again, because its lease ran out while we were slow,
replaces the older lease and keeps its lines.
"""

from dataclasses import dataclass
from typing import Final

import structlog

from libs.contracts.batches import (
    BATCH_PARTS,
    COMPLETION_WINDOW_S_DEFAULT,
    JOBS,
    BatchPart,
    LineError,
    SubmitJob,
)
from libs.contracts.subjects import last_token
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.blob_store import BlobMissing, BlobStore
from libs.runtime.bus import Lease, StreamMissing
from services.offline_queue.commands import LeaseJobs, LeaseParts
from services.offline_queue.events import (
    JobsLeased,
    LeasedJob,
    LeasedPart,
    PartsLeased,
    WaitingLine,
)
from services.offline_queue.job_runner import LoadedJob
from services.offline_queue.line_file import ANSWER_TOKENS_ASSUMED, BYTES_PER_TOKEN, BatchLine
from services.offline_queue.line_runner import LoadedLine
from services.offline_queue.reading import read_part
from services.offline_queue.records import Invalid
from services.offline_queue.store import OfflineStore

FETCH_NS: Final = 200 * NS_PER_MS
AGAIN_AFTER_NS: Final = 2 * NS_PER_S
JOB_LINE: Final = 1
"""A job is a part with one line."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class LoadedPart:
    """What the lines of a part ask, and the lease of each message that brought it."""

    leases: dict[int, Lease]
    """By the message's sequence: a part that was appended twice is one part here."""
    lines: dict[int, LoadedLine]
    job: LoadedJob | None = None


class Leases:
    """Everything that is leased now, by part key."""

    def __init__(self, store: OfflineStore, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._parts: dict[str, LoadedPart] = {}

    def line(self, part_key: str, line: int) -> LoadedLine | LoadedJob | None:
        """Return what a line asks; None if its part has been dropped."""
        part = self._parts.get(part_key)
        if part is None:
            return None
        return part.job if part.job is not None else part.lines.get(line)

    def drop(self, part_key: str) -> None:
        """Forget a part without a word to the broker."""
        self._parts.pop(part_key, None)

    async def keep(self, part_key: str) -> None:
        """Renew the lease. Raises: Unavailable."""
        part = self._parts.get(part_key)
        if part is not None:
            for lease in part.leases.values():
                await lease.in_progress()

    async def acknowledge(self, part_key: str) -> None:
        """Remove the part from the stream. Raises: Unavailable."""
        part = self._parts.get(part_key)
        if part is not None:
            for lease in list(part.leases.values()):
                await lease.ack()
            self._parts.pop(part_key, None)

    async def give_back_all(self) -> None:
        """Let other queues have all of it at once; what cannot be told runs out."""
        parts, self._parts = self._parts, {}
        for lease in [lease for part in parts.values() for lease in part.leases.values()]:
            try:
                await lease.nak()
            except Unavailable:
                return

    # ------------------------------------------------------------------ parts

    async def lease_parts(self, command: LeaseParts) -> PartsLeased:
        """Lease parts of a batch and load their lines."""
        loaded = []
        try:
            consumer = await self._store.parts_of(command.batch_id)
            for lease in await consumer.fetch(command.count, timeout_ns=FETCH_NS):
                part = await self._load(lease)
                if part is not None:
                    loaded.append(part)
        except (StreamMissing, Unavailable):
            self._store.forget_parts_of(command.batch_id)
        return PartsLeased(
            source_id=command.batch_id, parts=tuple(loaded), cause_id=command.cause_id
        )

    async def _load(self, lease: Lease) -> LeasedPart | None:
        """Return the part with the lines that are not stored yet; None if it cannot be had now."""
        try:
            part = BATCH_PARTS.decode(lease.message.payload)
        except ContractViolation as violation:
            _log.warning("part_unreadable", error=str(violation))
            await lease.term()
            return None
        record = await self._store.batches.get(part.batch_id)
        if record is None or record.status.is_final:
            await lease.term()
            return None
        try:
            lines = await read_part(
                self._blobs, record.input_file_id, part, endpoint=record.endpoint
            )
        except BlobMissing:
            await self._file_gone(part)
            return None
        except Unavailable:
            await lease.nak(delay_ns=AGAIN_AFTER_NS)
            raise
        stored = await self._store.lines_ended(part.batch_id, part.part)
        missing = {number: lines[number] for number in sorted(lines) if number not in stored}
        return self._hold(lease, part, missing, tenant=record.tenant)

    def _hold(
        self, lease: Lease, part: BatchPart, lines: dict[int, BatchLine], *, tenant: str
    ) -> LeasedPart:
        key = f"{part.batch_id}.{part.part}"
        loaded = {
            number: LoadedLine(batch_id=part.batch_id, part=part.part, tenant=tenant, content=line)
            for number, line in lines.items()
        }
        held = self._parts.get(key)
        if held is None:
            held = self._parts[key] = LoadedPart(leases={}, lines=loaded)
        held.leases[lease.message.sequence] = lease
        return LeasedPart(
            part_key=key,
            source_id=part.batch_id,
            lines=tuple(map(_waiting, lines.values())),
            delivery_count=lease.delivery_count,
        )

    async def _file_gone(self, part: BatchPart) -> None:
        message = "the input file is gone"
        error = LineError(code="file_not_found", message=message)
        await self._store.change(part.batch_id, Invalid(errors=(error,)))

    # ------------------------------------------------------------------ jobs

    async def lease_jobs(self, command: LeaseJobs) -> JobsLeased:
        """Lease jobs."""
        jobs = []
        try:
            consumer = await self._store.jobs()
            for lease in await consumer.fetch(command.count, timeout_ns=FETCH_NS):
                job = await self._load_job(lease)
                if job is not None:
                    jobs.append(job)
        except (StreamMissing, Unavailable):
            pass
        return JobsLeased(jobs=tuple(jobs), cause_id=command.cause_id)

    async def _load_job(self, lease: Lease) -> LeasedJob | None:
        try:
            job = JOBS.decode(lease.message.payload)
        except ContractViolation as violation:
            _log.warning("job_unreadable", subject=lease.message.subject, error=str(violation))
            await lease.term()
            return None
        alias = last_token(lease.message.subject)
        key = f"job.{job.request.request_id}"
        held = self._parts.get(key)
        if held is None:
            loaded = LoadedJob(alias=alias, job=job, deliveries=lease.delivery_count)
            held = self._parts[key] = LoadedPart(leases={}, lines={}, job=loaded)
        held.leases[lease.message.sequence] = lease
        return LeasedJob(
            part=LeasedPart(
                part_key=key,
                source_id=key,
                lines=(_waiting_job(job),),
                delivery_count=lease.delivery_count,
            ),
            alias=alias,
            tenant=job.tenant,
            deadline_at_unix_ns=self._deadline_at_unix_s(job) * NS_PER_S,
        )

    def _deadline_at_unix_s(self, job: SubmitJob) -> int:
        """Without an instant of submission the window begins when the job is taken up."""
        begun = job.submitted_at_unix_s
        window_s = job.complete_within_s or COMPLETION_WINDOW_S_DEFAULT
        return (self._store.now_unix_s() if begun is None else begun) + window_s


def _waiting(line: BatchLine) -> WaitingLine:
    return WaitingLine(
        line=line.number,
        prefix=line.prefix,
        prompt_tokens=line.prompt_tokens_predicted,
        answer_tokens=line.answer_tokens_predicted,
    )


def _waiting_job(job: SubmitJob) -> WaitingLine:
    request = job.request
    said = [request.prompt or "", *(message.content for message in request.messages or ())]
    text = "\n".join(said)
    prompt_tokens = len(request.prompt_token_ids or ()) or len(text) // BYTES_PER_TOKEN
    return WaitingLine(
        line=JOB_LINE,
        prefix=text,
        prompt_tokens=max(1, prompt_tokens),
        answer_tokens=min(request.max_tokens or ANSWER_TOKENS_ASSUMED, ANSWER_TOKENS_ASSUMED),
    )

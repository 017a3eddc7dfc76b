"""What the offline queue keeps in the broker: records, work to lease, results."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeVar

from libs.contracts import subjects
from libs.contracts.batches import (
    BATCH_LINES,
    BATCH_RECORDS,
    FILE_RECORDS,
    BatchLineEnded,
    BatchPart,
    BatchRecord,
    BatchTask,
    FileRecord,
    JobEnded,
)
from libs.contracts.wire import Codec, encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import MIB, NS_PER_S
from libs.runtime.bus import (
    Bus,
    Entry,
    KeyExists,
    KeyValue,
    KeyWatch,
    LeaseConsumer,
    StoredMessage,
    StreamOptions,
    WrongRevision,
)
from libs.runtime.clock import Clock
from services.offline_queue.records import Change, changed

RECORD_BYTES_MAX: Final = 256 * MIB
"""Of each bucket; as whoever else opens them says it."""
CHANGE_ATTEMPTS_MAX: Final = 16
RETRY_AFTER_NS: Final = 1 * NS_PER_S
DELIVERIES_MAX: Final = 1_000_000
"""The queue itself decides when a part was taken up too often, and says so."""
LEASES_MAX: Final = 10_000
RESULT_AGE_MAX_NS: Final = 40 * 86_400 * NS_PER_S
"""Longer than any batch: a batch's lines are removed when its files are written. Answers of jobs
nobody removes; they are kept as long, within the bounds of the stream."""

JOB_OPTIONS: Final = StreamOptions(
    name=subjects.JOB_STREAM,
    subjects=(subjects.OFFLINE_ALL, subjects.BATCH_PARTS_ALL, subjects.BATCH_TASKS_ALL),
    messages_max=2_000_000,
    bytes_max=1024 * MIB,
    age_max_ns=None,
    retention="work_queue",
)
RESULT_OPTIONS: Final = StreamOptions(
    name=subjects.RESULT_STREAM,
    subjects=(subjects.BATCH_LINES_ALL, subjects.OFFLINE_RESULTS_ALL),
    messages_max=10_000_000,
    bytes_max=8 * 1024 * MIB,
    age_max_ns=RESULT_AGE_MAX_NS,
)
COMPLETED: Final = "completed"
FAILED: Final = "failed"

RecordT = TypeVar("RecordT", BatchRecord, FileRecord)


class OfflineStore:
    """Everything here may raise Unavailable, and StreamFull where something is added."""

    def __init__(
        self, bus: Bus, *, batches: KeyValue, files: KeyValue, clock: Clock, lease_ns: int
    ) -> None:
        self._bus = bus
        self._batches = batches
        self._files = files
        self._clock = clock
        self._lease_ns = lease_ns
        self._part_consumers: dict[str, LeaseConsumer] = {}

    # ------------------------------------------------------------------ records

    async def watch_batches(self) -> KeyWatch:
        """Follow all batches."""
        return await self._batches.watch()

    async def batch(self, batch_id: str) -> BatchRecord | None:
        """Return the batch as it is now."""
        entry = await self._batches.get(batch_id)
        return None if entry is None else _decoded(BATCH_RECORDS, entry)

    async def batches(self) -> dict[str, BatchRecord]:
        """Return all batches there are."""
        found = {}
        for batch_id in await self._batches.keys():
            record = await self.batch(batch_id)
            if record is not None:
                found[batch_id] = record
        return found

    async def create_batch(self, record: BatchRecord) -> BatchRecord:
        """Write a new record; return it, or the one that is there under its id."""
        try:
            await self._batches.create(record.batch_id, encode(record))
        except KeyExists:
            return await self.batch(record.batch_id) or record
        return record

    async def change(self, batch_id: str, change: Change) -> BatchRecord | None:
        """Apply the change by compare-and-set; return the record then, None if there is none."""
        for _ in range(CHANGE_ATTEMPTS_MAX):
            entry = await self._batches.get(batch_id)
            if entry is None:
                return None
            record = _decoded(BATCH_RECORDS, entry)
            if record is None:
                return None
            after = changed(record, change, now_unix_s=self.now_unix_s())
            if after is record or await self._written(entry, after):
                return after
        raise Unavailable("the batch is being changed by others", retry_after_ns=RETRY_AFTER_NS)

    async def _written(self, entry: Entry, record: BatchRecord) -> bool:
        try:
            await self._batches.update(record.batch_id, encode(record), revision=entry.revision)
        except WrongRevision:
            return False
        return True

    async def file(self, file_id: str) -> FileRecord | None:
        """Return what is known of a file."""
        entry = await self._files.get(file_id)
        return None if entry is None else _decoded(FILE_RECORDS, entry)

    async def files(self) -> dict[str, FileRecord]:
        """Return all files there are."""
        found = {}
        for file_id in await self._files.keys():
            record = await self.file(file_id)
            if record is not None:
                found[file_id] = record
        return found

    async def put_file(self, record: FileRecord) -> None:
        """Make a file known."""
        await self._files.put(record.file_id, encode(record))

    async def forget_file(self, file_id: str) -> None:
        """Make a file unknown."""
        await self._files.delete(file_id)

    def now_unix_s(self) -> int:
        """Return the wall clock's seconds."""
        return self._clock.now_unix_ns() // NS_PER_S

    # ------------------------------------------------------------------ work

    async def tasks(self) -> LeaseConsumer:
        """Return where tasks are leased."""
        return await self._consumer("tasks", subjects.BATCH_TASKS_ALL)

    async def jobs(self) -> LeaseConsumer:
        """Return where jobs are leased."""
        return await self._consumer("jobs", subjects.OFFLINE_ALL)

    async def parts_of(self, batch_id: str) -> LeaseConsumer:
        """Return where the parts of a batch are leased: each batch by itself, so that a queue
        chooses whose turn it is."""
        known = self._part_consumers.get(batch_id)
        if known is None:
            known = await self._consumer(_parts_name(batch_id), subjects.batch_part(batch_id))
            self._part_consumers[batch_id] = known
        return known

    def forget_parts_of(self, batch_id: str) -> None:
        """Open the consumer anew next time: it is gone, or the batch has ended."""
        self._part_consumers.pop(batch_id, None)

    async def append_task(self, batch_id: str) -> None:
        """Have some queue look at the batch."""
        await self._bus.append(subjects.batch_task(batch_id), encode(BatchTask(batch_id=batch_id)))

    async def append_part(self, part: BatchPart) -> None:
        """Put a part into the stream, once."""
        await self._bus.append(
            subjects.batch_part(part.batch_id),
            encode(part),
            message_id=f"{part.batch_id}.{part.part}",
        )

    async def work_left(self, batch_id: str) -> tuple[int, int]:
        """Return how many parts and tasks of the batch are in the stream, leased or not."""
        part, task = subjects.batch_part(batch_id), subjects.batch_task(batch_id)
        parts = await self._bus.subjects(subjects.JOB_STREAM, part)
        tasks = await self._bus.subjects(subjects.JOB_STREAM, task)
        return parts.get(part, 0), tasks.get(task, 0)

    async def batches_with_work(self) -> set[str]:
        """Return the ids of the batches of which parts or tasks are in the stream."""
        found: set[str] = set()
        for pattern in (subjects.BATCH_PARTS_ALL, subjects.BATCH_TASKS_ALL):
            held = await self._bus.subjects(subjects.JOB_STREAM, pattern)
            found |= {subjects.last_token(subject) for subject in held}
        return found

    async def remove_work(self, batch_id: str) -> None:
        """Remove the parts of a batch, and what leases them."""
        await self._bus.purge(subjects.JOB_STREAM, subjects.batch_part(batch_id))
        self.forget_parts_of(batch_id)
        await self._bus.delete_consumer(subjects.JOB_STREAM, _parts_name(batch_id))

    # ------------------------------------------------------------------ results

    async def store_line(self, ended: BatchLineEnded, *, part: int) -> None:
        """Store how a line ended; a second copy within two minutes is dropped."""
        outcome = COMPLETED if ended.is_completed else FAILED
        await self._bus.append(
            subjects.batch_line(ended.batch_id, part, outcome),
            encode(ended),
            message_id=f"{ended.batch_id}/{ended.line}",
        )

    async def store_job(self, alias: str, ended: JobEnded) -> None:
        """Store how a job ended; likewise."""
        await self._bus.append(
            subjects.offline_result(alias, ended.request_id),
            encode(ended),
            message_id=f"job/{ended.request_id}",
        )

    async def lines_ended(self, batch_id: str, part: int) -> Mapping[int, BatchLineEnded]:
        """Return the ended lines of a part by number; of two copies the one stored first."""
        found: dict[int, BatchLineEnded] = {}
        pattern = subjects.batch_lines(batch_id, part)
        for message in await self._bus.read_subject(subjects.RESULT_STREAM, pattern):
            ended = _line_of(message)
            if ended is not None:
                found.setdefault(ended.line, ended)
        return found

    async def outcomes(self, batch_id: str) -> tuple[int, int]:
        """Return how many lines were completed and how many failed, as the broker counts."""
        counts: dict[str, int] = defaultdict(int)
        held = await self._bus.subjects(subjects.RESULT_STREAM, subjects.batch_lines(batch_id))
        for subject, messages in held.items():
            counts[subjects.last_token(subject)] += messages
        return counts[COMPLETED], counts[FAILED]

    async def parts_with_results(self, batch_id: str) -> list[int]:
        """Return the parts of which lines have ended, in order."""
        held = await self._bus.subjects(subjects.RESULT_STREAM, subjects.batch_lines(batch_id))
        return sorted({int(subject.split(".")[-2]) for subject in held})

    async def batches_with_results(self) -> set[str]:
        """Return the ids of the batches of which ended lines are stored."""
        held = await self._bus.subjects(subjects.RESULT_STREAM, subjects.BATCH_LINES_ALL)
        return {subject.split(".")[-3] for subject in held}

    async def remove_results(self, batch_id: str) -> None:
        """Remove the ended lines of a batch: its files are written."""
        await self._bus.purge(subjects.RESULT_STREAM, subjects.batch_lines(batch_id))

    async def _consumer(self, name: str, pattern: str) -> LeaseConsumer:
        return await self._bus.lease_consumer(
            subjects.JOB_STREAM,
            name,
            filter_subject=pattern,
            ack_wait_ns=self._lease_ns,
            deliveries_max=DELIVERIES_MAX,
            leases_max=LEASES_MAX,
        )


def _parts_name(batch_id: str) -> str:
    return f"parts-{batch_id}"


def _decoded(codec: Codec[RecordT], entry: Entry) -> RecordT | None:
    """Return the record; what cannot be read counts as not there: nobody of ours wrote it."""
    try:
        return codec.decode(entry.value)
    except ContractViolation:
        return None


def _line_of(message: StoredMessage) -> BatchLineEnded | None:
    try:
        return BATCH_LINES.decode(message.payload)
    except ContractViolation:
        return None  # Nobody of ours wrote it; the line counts as not ended.


async def open_offline_store(
    bus: Bus,
    *,
    clock: Clock,
    lease_ns: int,
    jobs_max: int = JOB_OPTIONS.messages_max,
    results_max: int = RESULT_OPTIONS.messages_max,
) -> OfflineStore:
    """Create the streams and buckets if need be. Raises: ConfigError."""
    await bus.ensure_stream(replace(JOB_OPTIONS, messages_max=jobs_max))
    await bus.ensure_stream(replace(RESULT_OPTIONS, messages_max=results_max))
    batches = await bus.ensure_bucket(subjects.BATCH_BUCKET, bytes_max=RECORD_BYTES_MAX)
    files = await bus.ensure_bucket(subjects.FILE_BUCKET, bytes_max=RECORD_BYTES_MAX)
    return OfflineStore(bus, batches=batches, files=files, clock=clock, lease_ns=lease_ns)

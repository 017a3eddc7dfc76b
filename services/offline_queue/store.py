"""What the offline queue keeps in the broker: records, work to lease, results."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from libs.client.records import Records
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
from libs.contracts.wire import encode
from libs.kernel.errors import ContractViolation
from libs.kernel.units import MIB, NS_PER_S
from libs.runtime.bus import (
    Bus,
    ConsumerOptions,
    KeyExists,
    LeaseConsumer,
    StoredMessage,
    StreamOptions,
)
from libs.runtime.clock import Clock
from services.offline_queue.records import Change, changed

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


class OfflineStore:
    """Everything here may raise Unavailable, and StreamFull where something is added."""

    def __init__(self, bus: Bus, *, clock: Clock, lease_ns: int) -> None:
        self.batches: Records[BatchRecord] = Records(bus, subjects.BATCH_BUCKET, BATCH_RECORDS)
        self.files: Records[FileRecord] = Records(bus, subjects.FILE_BUCKET, FILE_RECORDS)
        self._bus = bus
        self._clock = clock
        self._lease_ns = lease_ns
        self._part_consumers: dict[str, LeaseConsumer] = {}

    # ------------------------------------------------------------------ records

    async def create_batch(self, record: BatchRecord) -> BatchRecord:
        """Write a new record; return it, or the one that is there under its id."""
        try:
            await self.batches.create(record.batch_id, record)
        except KeyExists:
            return await self.batches.get(record.batch_id) or record
        return record

    async def change(self, batch_id: str, change: Change) -> BatchRecord | None:
        """Change the batch; return it as it is then, None if there is none."""
        return await self.batches.change(
            batch_id, lambda record: changed(record, change, now_unix_s=self.now_unix_s())
        )

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
            ConsumerOptions(
                stream=subjects.JOB_STREAM,
                durable=name,
                filter_subject=pattern,
                ack_wait_ns=self._lease_ns,
                deliveries_max=DELIVERIES_MAX,
                leases_max=LEASES_MAX,
            )
        )


def _parts_name(batch_id: str) -> str:
    return f"parts-{batch_id}"


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
    store = OfflineStore(bus, clock=clock, lease_ns=lease_ns)
    await store.batches.open()
    await store.files.open()
    return store

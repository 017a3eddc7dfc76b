"""Reads and writes the records of files or batches in their bucket; see libs.contracts.batches.

What a record says decides what is removed, so one that cannot be read (a newer version of ours
wrote it) is never taken for one that is not there: to ask for it is Unavailable.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from libs.contracts.batches import BatchRecord, FileRecord
from libs.contracts.wire import Codec, encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import MIB, NS_PER_S
from libs.runtime.bus import (
    Bus,
    Entry,
    InitialStateComplete,
    KeyDeleted,
    KeyUpdated,
    KeyValue,
    KeyWatch,
    StreamMissing,
    WrongRevision,
)

BUCKET_BYTES_MAX: Final = 256 * MIB
"""Some 200,000 records."""
READS_AT_ONCE: Final = 32
CHANGE_ATTEMPTS_MAX: Final = 16
RETRY_AFTER_NS: Final = 1 * NS_PER_S

RecordT = TypeVar("RecordT", FileRecord, BatchRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """Which records of a long list to return."""

    limit: int
    after: str | None = None
    """The id that ended the page before; it need not exist any more."""
    is_newest_first: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[RecordT]):
    """Some records of a list, in its order."""

    records: tuple[RecordT, ...]
    has_more: bool


class UnreadableRecord(Unavailable):
    """The record is there, and another version than ours can read it."""


class Records(Generic[RecordT]):
    """The records of one kind, each under its id. Every method may raise Unavailable."""

    def __init__(self, bus: Bus, bucket: str, codec: Codec[RecordT]) -> None:
        self._bus = bus
        self._name = bucket
        self._codec: Codec[RecordT] = codec
        self._bucket: KeyValue | None = None

    async def open(self) -> None:
        """Create the bucket if need be, now rather than when it is first used.

        Raises: ConfigError.
        """
        async with self._opened():
            pass

    async def get(self, record_id: str) -> RecordT | None:
        """Return the record as it is now; None where there is none, or can be none, of this id."""
        entry = await self._entry(record_id)
        return None if entry is None else self._read(record_id, entry.value)

    async def all(self) -> dict[str, RecordT]:
        """Return every record by its id."""
        async with self._opened() as bucket:
            ids = await bucket.keys()
        return {record_id: record for record_id in ids if (record := await self.get(record_id))}

    async def create(self, record_id: str, record: RecordT) -> None:
        """Write a new record. Raises: KeyExists, StreamFull."""
        async with self._opened() as bucket:
            await bucket.create(record_id, encode(record))

    async def put(self, record_id: str, record: RecordT) -> None:
        """Write a record, whatever was there. Raises: StreamFull."""
        async with self._opened() as bucket:
            await bucket.put(record_id, encode(record))

    async def change(self, record_id: str, changed: Callable[[RecordT], RecordT]) -> RecordT | None:
        """Apply a change by compare-and-set; return the record then, None if there is none.

        `changed` may be asked again, and returns the very record it was given to leave it as it is.
        Raises: StreamFull.
        """
        for _ in range(CHANGE_ATTEMPTS_MAX):
            entry = await self._entry(record_id)
            if entry is None:
                return None
            before = self._read(record_id, entry.value)
            after = changed(before)
            if after is before:
                return before
            with suppress(WrongRevision):
                async with self._opened() as bucket:
                    await bucket.update(record_id, encode(after), revision=entry.revision)
                return after
        raise Unavailable(f"{record_id} is being changed by others", retry_after_ns=RETRY_AFTER_NS)

    async def delete(self, record_id: str) -> None:
        """Remove the record; harmless if it is not there."""
        async with self._opened() as bucket:
            await bucket.delete(record_id)

    async def page(
        self, page: PageRequest, *, is_wanted: Callable[[RecordT], bool]
    ) -> Page[RecordT]:
        """Return a page of the records that are wanted, in the order of their ids; those that
        cannot be read are left out."""
        async with self._opened() as bucket:
            ids = await bucket.keys()
        if page.is_newest_first:
            ids = [i for i in reversed(ids) if page.after is None or i < page.after]
        else:
            ids = [i for i in ids if page.after is None or i > page.after]
        found: list[RecordT] = []
        for start in range(0, len(ids), READS_AT_ONCE):
            at_once = ids[start : start + READS_AT_ONCE]
            records = await asyncio.gather(*map(self._get_readable, at_once))
            found += [record for record in records if record is not None and is_wanted(record)]
            if len(found) > page.limit:
                break
        return Page(records=tuple(found[: page.limit]), has_more=len(found) > page.limit)

    async def first(self, *, is_wanted: Callable[[RecordT], bool]) -> RecordT | None:
        """Return any record that is wanted; reads the bucket as a stream, without holding it."""
        async with self._opened() as bucket:
            watch = await bucket.watch()
            try:
                async for event in watch:
                    match event:
                        case KeyUpdated():
                            record = self._read(event.key, event.value)
                            if is_wanted(record):
                                return record
                        case InitialStateComplete():
                            return None
                        case KeyDeleted():
                            pass
            finally:
                await watch.close()
        return None

    async def watch(self) -> KeyWatch:
        """Follow all records as they are written."""
        async with self._opened() as bucket:
            return await bucket.watch()

    async def _entry(self, record_id: str) -> Entry | None:
        async with self._opened() as bucket:
            try:
                return await bucket.get(record_id)
            except ContractViolation:
                return None  # What cannot be a key names nothing.

    async def _get_readable(self, record_id: str) -> RecordT | None:
        try:
            return await self.get(record_id)
        except UnreadableRecord:
            return None

    def _read(self, record_id: str, value: bytes) -> RecordT:
        try:
            return self._codec.decode(value)
        except ContractViolation as violation:
            message = f"{record_id} cannot be read by this version: {violation}"
            raise UnreadableRecord(message, retry_after_ns=RETRY_AFTER_NS) from violation

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[KeyValue, None]:
        """Open the bucket if need be; one that the broker has lost is made anew next time."""
        if self._bucket is None:
            self._bucket = await self._bus.ensure_bucket(self._name, bytes_max=BUCKET_BYTES_MAX)
        try:
            yield self._bucket
        except StreamMissing as refusal:
            self._bucket = None
            raise Unavailable(str(refusal), retry_after_ns=RETRY_AFTER_NS) from refusal

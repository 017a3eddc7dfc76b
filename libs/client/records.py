"""Reads and writes the records of files or batches in their bucket; see libs.contracts.batches."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from libs.contracts.batches import BatchRecord, FileRecord
from libs.contracts.wire import Codec, encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import MIB, NS_PER_S
from libs.runtime.bus import (
    Bus,
    InitialStateComplete,
    KeyDeleted,
    KeyUpdated,
    KeyValue,
    StreamMissing,
)

BUCKET_BYTES_MAX: Final = 256 * MIB
"""Some 200,000 records; the offline queue says the same."""
READS_AT_ONCE: Final = 32

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


class Records(Generic[RecordT]):
    """The records of one kind, each under its id. Every method may raise Unavailable."""

    def __init__(self, bus: Bus, bucket: str, codec: Codec[RecordT]) -> None:
        self._bus = bus
        self._name = bucket
        self._codec: Codec[RecordT] = codec
        self._bucket: KeyValue | None = None

    async def get(self, record_id: str) -> RecordT | None:
        """Return the record as it is now; None where there is none, or can be none, of this id."""
        async with self._opened() as bucket:
            try:
                entry = await bucket.get(record_id)
            except ContractViolation:
                return None  # What cannot be a key names nothing.
        return None if entry is None else self._codec.decode(entry.value)

    async def create(self, record_id: str, record: RecordT) -> None:
        """Write a new record. Raises: KeyExists, StreamFull."""
        async with self._opened() as bucket:
            await bucket.create(record_id, encode(record))

    async def delete(self, record_id: str) -> None:
        """Remove the record; harmless if it is not there."""
        async with self._opened() as bucket:
            await bucket.delete(record_id)

    async def page(
        self, page: PageRequest, *, is_wanted: Callable[[RecordT], bool]
    ) -> Page[RecordT]:
        """Return a page of the records that are wanted, in the order of their ids."""
        async with self._opened() as bucket:
            ids = await bucket.keys()
        if page.is_newest_first:
            ids = [i for i in reversed(ids) if page.after is None or i < page.after]
        else:
            ids = [i for i in ids if page.after is None or i > page.after]
        found: list[RecordT] = []
        for start in range(0, len(ids), READS_AT_ONCE):
            at_once = ids[start : start + READS_AT_ONCE]
            records = await asyncio.gather(*(self.get(record_id) for record_id in at_once))
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
                            record = self._codec.decode(event.value)
                            if is_wanted(record):
                                return record
                        case InitialStateComplete():
                            return None
                        case KeyDeleted():
                            pass
            finally:
                await watch.close()
        return None

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[KeyValue, None]:
        """Open the bucket if need be; one that the broker has lost is made anew next time."""
        if self._bucket is None:
            self._bucket = await self._bus.ensure_bucket(self._name, bytes_max=BUCKET_BYTES_MAX)
        try:
            yield self._bucket
        except StreamMissing as refusal:
            self._bucket = None
            raise Unavailable(str(refusal), retry_after_ns=NS_PER_S) from refusal

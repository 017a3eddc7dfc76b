"""Records in their bucket: changed by compare-and-set, and never taken for gone."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from libs.client.batch_ids import new_file_id
from libs.client.records import PageRequest, Records, UnreadableRecord
from libs.contracts import subjects
from libs.contracts.batches import FILE_RECORDS, FilePurpose, FileRecord
from libs.kernel.units import MIB
from libs.runtime.bus import KeyValue
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub


def a_file(at_s: int = 1) -> FileRecord:
    return FileRecord(
        file_id=new_file_id(now_unix_ns=at_s * 10**9),
        purpose=FilePurpose.BATCH,
        file_name="a.jsonl",
        size_bytes=0,
        created_at_unix_s=at_s,
    )


def run(use: Callable[[Records[FileRecord], KeyValue], Awaitable[None]]) -> None:
    """Use the records of files, beside somebody who writes anything to their bucket."""

    async def work() -> None:
        bus = MemoryBus(MemoryHub())
        files: Records[FileRecord] = Records(bus, subjects.FILE_BUCKET, FILE_RECORDS)
        await use(files, await bus.ensure_bucket(subjects.FILE_BUCKET, bytes_max=256 * MIB))

    asyncio.run(work())


def larger(file: FileRecord) -> FileRecord:
    return file.model_copy(update={"size_bytes": file.size_bytes + 1})


def test_changes_at_the_same_time_are_all_made() -> None:
    async def use(files: Records[FileRecord], _: KeyValue) -> None:
        file = a_file()
        await files.create(file.file_id, file)
        await asyncio.gather(*(files.change(file.file_id, larger) for _ in range(8)))
        assert await files.all() == {file.file_id: file.model_copy(update={"size_bytes": 8})}

    run(use)


def test_a_change_of_nothing_writes_nothing() -> None:
    async def use(files: Records[FileRecord], bucket: KeyValue) -> None:
        file = a_file()
        await files.create(file.file_id, file)
        before = await bucket.get(file.file_id)
        assert await files.change(file.file_id, lambda record: record) == file
        assert await bucket.get(file.file_id) == before
        assert await files.change("file-none", larger) is None

    run(use)


def test_a_record_that_cannot_be_read_is_not_taken_for_one_that_is_not_there() -> None:
    async def use(files: Records[FileRecord], bucket: KeyValue) -> None:
        readable, newer = a_file(1), a_file(2).file_id
        await files.create(readable.file_id, readable)
        await bucket.put(newer, b'{"type": "file_record.v2"}')
        for asked in (files.get(newer), files.all(), files.change(newer, larger)):
            with pytest.raises(UnreadableRecord, match=newer):
                await asked
        with pytest.raises(UnreadableRecord):
            await files.first(is_wanted=lambda file: file.size_bytes > 0)
        page = await files.page(PageRequest(limit=10), is_wanted=lambda _: True)
        assert page.records == (readable,), "a list shows what can be shown"

    run(use)

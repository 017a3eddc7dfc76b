"""What a client of batches does when answers are lost, nobody answers, or a bucket is gone."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from libs.client.batch_ids import new_batch_id, new_file_id
from libs.client.batches import AskOptions, BatchClient, BatchRefused
from libs.client.records import PageRequest
from libs.contracts.batches import (
    BatchRejectReason,
    BatchStatus,
    CancelBatch,
    FilePurpose,
    FileRecord,
    SubmitBatch,
)
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.blob_folder import FolderBlobStore
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from tests.scripted_queue import QueueScript, ScriptedQueue

QUICK = AskOptions(patience_ns=NS_PER_S, answer_timeout_ns=5 * NS_PER_MS, pause_ns=NS_PER_MS)


def a_question(at_s: int = 1) -> SubmitBatch:
    return SubmitBatch(
        batch_id=new_batch_id(now_unix_ns=at_s * NS_PER_S),
        input_file_id="file-0123456789",
        endpoint="/v1/completions",
    )


def a_file(at_s: int, *, tenant: str = "") -> FileRecord:
    return FileRecord(
        file_id=new_file_id(now_unix_ns=at_s * NS_PER_S),
        purpose=FilePurpose.BATCH,
        file_name="a.jsonl",
        size_bytes=1,
        created_at_unix_s=at_s,
        tenant=tenant,
    )


def run(
    folder: Path,
    script: QueueScript,
    use: Callable[[BatchClient, ScriptedQueue], Awaitable[None]],
) -> None:
    """Use a client beside a queue that follows the script."""

    async def serve() -> None:
        hub = MemoryHub()
        queue = ScriptedQueue(MemoryBus(hub), FolderBlobStore(folder), script)
        client = BatchClient(MemoryBus(hub), options=QUICK)
        async with queue.serving():
            await use(client, queue)

    asyncio.run(serve())


def test_a_question_whose_answer_is_lost_is_asked_again_and_makes_one_batch(tmp_path) -> None:
    async def use(client: BatchClient, queue: ScriptedQueue) -> None:
        question = a_question()
        record = await client.ask(question)
        assert record.batch_id == question.batch_id
        assert queue.script.questions == [question] * 3
        page = await client.batches.page(PageRequest(limit=10), is_wanted=lambda _: True)
        assert page.records == (record,)

    run(tmp_path, QueueScript(answers_lost=2), use)


def test_a_cancellation_whose_answer_is_lost_is_no_conflict(tmp_path) -> None:
    async def use(client: BatchClient, queue: ScriptedQueue) -> None:
        batch_id = (await client.ask(a_question())).batch_id
        queue.script.answers_lost = 1
        assert (await client.ask(CancelBatch(batch_id=batch_id))).status is BatchStatus.CANCELLED
        with pytest.raises(BatchRefused) as refused:
            await client.ask(CancelBatch(batch_id=batch_id))
        assert refused.value.reason is BatchRejectReason.CONFLICT

    run(tmp_path, QueueScript(), use)


def test_where_nobody_answers_it_is_said_after_the_patience() -> None:
    async def ask() -> None:
        client = BatchClient(MemoryBus(MemoryHub()), options=AskOptions(patience_ns=0))
        with pytest.raises(Unavailable, match="no offline queue"):
            await client.ask(a_question())

    asyncio.run(ask())


def test_a_page_goes_on_after_an_id_that_is_gone(tmp_path) -> None:
    async def use(client: BatchClient, queue: ScriptedQueue) -> None:
        files = [a_file(at_s, tenant="ab"[at_s % 2]) for at_s in range(1, 80)]
        for file in files:
            await client.files.create(file.file_id, file)
        await client.files.delete(files[40].file_id)
        page = await client.files.page(
            PageRequest(limit=3, after=files[40].file_id), is_wanted=lambda f: f.tenant == "a"
        )
        assert [file.created_at_unix_s for file in page.records] == [40, 38, 36]
        assert page.has_more
        oldest_first = PageRequest(limit=79, after=files[40].file_id, is_newest_first=False)
        page = await client.files.page(oldest_first, is_wanted=lambda f: f.tenant == "a")
        assert [file.created_at_unix_s for file in page.records] == list(range(42, 80, 2))
        assert not page.has_more

    run(tmp_path, QueueScript(), use)


def test_an_open_batch_keeps_its_file_and_a_final_one_does_not(tmp_path) -> None:
    async def use(client: BatchClient, queue: ScriptedQueue) -> None:
        record = await client.ask(a_question())
        assert await client.open_batch_of(record.input_file_id) == record
        assert await client.open_batch_of("file-9876543210") is None
        await client.ask(CancelBatch(batch_id=record.batch_id))
        assert await client.open_batch_of(record.input_file_id) is None

    run(tmp_path, QueueScript(), use)

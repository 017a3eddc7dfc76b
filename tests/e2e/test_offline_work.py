"""Batches on a real fleet whose processes are killed at random: each line answered once, rightly.

Queues, routers and workers die by SIGKILL, by id, one after the other; each is replaced. What the
batch says in the end is compared with what the same requests are answered over HTTP.
"""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from libs.contracts import subjects
from libs.contracts.batches import (
    BATCH_ANSWERS,
    BatchAccepted,
    BatchRecord,
    BatchStatus,
    FilePurpose,
    FileRecord,
    SubmitBatch,
)
from libs.contracts.wire import encode
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from libs.runtime.blob_store import BlobStore, open_blob_store, read_whole, write_whole
from libs.runtime.clock import SystemClock
from services.launcher.fleet import Fleet
from services.launcher.model_source import bundled_model
from services.launcher.recipes import FleetOptions
from services.offline_queue.store import OfflineStore, open_offline_store

COMPLETIONS = "/v1/completions"
LINES = 200
BAD_LINES = (17, 90, 163)
"""They pass validation, and the fleet refuses them: their prompts do not fit."""
CHECKED = 24
DEADLINE_S = 150.0
KILLS = ("offline-queue", "gpu-worker", "online-router", "offline-queue", "gpu-worker")
KILL_EVERY_LINES = 25
ID_SUFFIX = "0123456789ab"


@pytest.fixture(scope="module")
def fleet_and_runner(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Fleet, asyncio.Runner, BlobStore]]:
    folder: Path = tmp_path_factory.mktemp("fleet")
    options = FleetOptions(
        model=bundled_model(),
        data_folder=folder,
        workers=2,
        routers=2,
        offline_queues=2,
        http_port=0,
        queue_settings={"lease_s": "3"},
    )
    with asyncio.Runner() as runner:
        fleet = Fleet(options, say=print)
        try:
            runner.run(fleet.start())
            yield fleet, runner, open_blob_store(f"folder:{folder}/blobs")
        finally:
            runner.run(fleet.stop())


def body_of(number: int) -> dict[str, object]:
    """A greedy request; a bad line's prompt is longer than the model's context."""
    prompt = f"The tide table of day {number} says"
    if number in BAD_LINES:
        prompt = "tide " * 20_000
    return {"model": "tide-tiny", "prompt": prompt, "max_tokens": 24, "temperature": 0}


def file_of(numbers: range) -> bytes:
    lines = (
        json.dumps(
            {
                "custom_id": f"day {number}",
                "method": "POST",
                "url": COMPLETIONS,
                "body": body_of(number),
            }
        )
        for number in numbers
    )
    return "".join(f"{line}\n" for line in lines).encode()


async def submitted(fleet: Fleet, store: OfflineStore, blobs: BlobStore) -> str:
    """Put a file into the store and submit it; return the batch's id."""
    content = file_of(range(LINES))
    file_id, batch_id = f"file-{ID_SUFFIX}", f"batch_{ID_SUFFIX}"
    await write_whole(blobs, file_id, content)
    await store.put_file(
        FileRecord(
            file_id=file_id,
            purpose=FilePurpose.BATCH,
            file_name="days.jsonl",
            size_bytes=len(content),
            created_at_unix_s=store.now_unix_s(),
        )
    )
    question = SubmitBatch(batch_id=batch_id, input_file_id=file_id, endpoint=COMPLETIONS)
    reply = await fleet.bus.request(subjects.BATCH_CONTROL, encode(question))
    answer = BATCH_ANSWERS.decode(reply.payload)
    assert isinstance(answer, BatchAccepted), answer
    return batch_id


async def reaches(
    store: OfflineStore, batch_id: str, condition: Callable[[BatchRecord], bool]
) -> BatchRecord:
    while True:
        record = await store.batch(batch_id)
        assert record is not None
        if condition(record):
            return record
        await asyncio.sleep(0.05)


async def run_under_fire(fleet: Fleet, store: OfflineStore, batch_id: str) -> BatchRecord:
    """Kill one process after the other as the batch goes on; return its final record."""
    rng = Rng(7).child("victims")
    for number, kind in enumerate(KILLS):
        ended = (number + 1) * KILL_EVERY_LINES
        await reaches(
            store,
            batch_id,
            lambda r, n=ended: r.counts.completed + r.counts.failed >= n or r.status.is_final,
        )
        victims = [child for child in fleet.children if child.name.startswith(kind)]
        victim = rng.choice([child for child in victims if child.exit_code is None])
        os.kill(victim.process_id, signal.SIGKILL)
    return await reaches(store, batch_id, lambda r: r.status.is_final)


async def direct_answers(http_url: str, numbers: list[int]) -> dict[int, str]:
    async with httpx.AsyncClient(base_url=http_url, timeout=60) as http:
        answers = {}
        for number in numbers:
            response = await http.post(COMPLETIONS, json=body_of(number))
            assert response.status_code == 200, response.text
            answers[number] = response.json()["choices"][0]["text"]
        return answers


def test_a_batch_under_fire_has_every_line_once_and_right(
    fleet_and_runner: tuple[Fleet, asyncio.Runner, BlobStore],
) -> None:
    fleet, runner, blobs = fleet_and_runner

    async def scenario() -> None:
        store = await open_offline_store(fleet.bus, clock=SystemClock(), lease_ns=3 * NS_PER_S)
        async with asyncio.timeout(DEADLINE_S):
            batch_id = await submitted(fleet, store, blobs)
            record = await run_under_fire(fleet, store, batch_id)
        assert record.status is BatchStatus.COMPLETED
        assert record.counts.completed == LINES - len(BAD_LINES)
        assert record.counts.failed == len(BAD_LINES)
        output = await lines_of(blobs, record.output_file_id)
        errors = await lines_of(blobs, record.error_file_id)
        good = [number for number in range(LINES) if number not in BAD_LINES]
        assert [line["custom_id"] for line in output] == [f"day {number}" for number in good]
        assert [line["custom_id"] for line in errors] == [f"day {number}" for number in BAD_LINES]
        codes = {line["response"]["body"]["error"]["code"] for line in errors}
        assert codes == {"context_length_exceeded"}
        checked = good[:: len(good) // CHECKED]
        assert fleet.http_url is not None
        direct = await direct_answers(fleet.http_url, checked)
        texts = {
            number: line["response"]["body"]["choices"][0]["text"]
            for number, line in zip(good, output, strict=True)
        }
        assert {number: texts[number] for number in checked} == direct

    runner.run(scenario())


async def lines_of(blobs: BlobStore, file_id: str | None) -> list[dict]:
    assert file_id is not None
    content = await read_whole(blobs, file_id, bytes_max=10**9)
    return [json.loads(line) for line in content.splitlines()]

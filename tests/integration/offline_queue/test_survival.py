"""Queues that die, stop and come back; a broker that goes away: no line lost, none told twice."""

import asyncio
from collections import Counter
from pathlib import Path

from libs.contracts import subjects
from libs.contracts.batches import BatchPart, BatchStatus
from libs.contracts.online import SubmitRequest
from libs.contracts.wire import encode
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.nats_server import NatsServer, ServerOptions
from services.offline_queue.janitor import Janitor
from tests.integration.offline_queue.conftest import Worlds, echo_of, lines
from tests.scripted_router import Script

LONG_LEASE_NS = 3_600 * NS_PER_S
"""Whoever waits for it to run out waits too long."""


def slow(submission: SubmitRequest) -> Script:
    return Script(texts=echo_of(submission).texts, pace_ns=20 * NS_PER_MS)


async def test_a_batch_outlives_every_queue_that_worked_on_it(any_world) -> None:
    async with any_world(slow) as world:
        batch_id = await world.submit(lines(200))
        for _ in range(3):
            await world.in_progress(batch_id)
            before = (await world.record(batch_id)).counts.completed
            await world.reaches(batch_id, lambda r, n=before: r.counts.completed > n)
            await world.queues[-1].die()
            await world.start_queue()
        record = await world.ended(batch_id, timeout_s=40)
        assert record.status is BatchStatus.COMPLETED
        output = await world.result(record.output_file_id)
        assert [line["custom_id"] for line in output] == [f"line {n}" for n in range(200)]
        texts = [line["response"]["body"]["choices"][0]["text"] for line in output]
        assert texts == [f"re:prompt{number:03d}" for number in range(200)]


async def test_whoever_takes_a_line_up_again_asks_for_the_same_session(a_world) -> None:
    async with a_world(lambda _: Script(texts=["a"] * 40, pace_ns=50 * NS_PER_MS)) as world:
        batch_id = await world.submit(lines(4))
        while len({s.request_id for s in world.router.submissions}) < 4:
            await asyncio.sleep(0.01)
        await world.queues[0].die()
        await world.start_queue()
        record = await world.ended(batch_id)
        assert record.counts.completed == 4
        assert len({s.request_id for s in world.router.submissions}) == 4


async def test_a_queue_that_stops_hands_its_parts_over_at_once_and_cancels_nothing(
    a_world,
) -> None:
    pace = Script(texts=["a"] * 20, pace_ns=50 * NS_PER_MS)
    async with a_world(lambda _: pace, lease_ns=LONG_LEASE_NS) as world:
        batch_id = await world.submit(lines(4))
        while len({s.request_id for s in world.router.submissions}) < 4:
            await asyncio.sleep(0.01)
        await world.queues[0].stop()
        assert not any(s.cancelled.is_set() for s in world.router._sessions.values())
        await world.start_queue()
        record = await world.ended(batch_id, timeout_s=60)
        assert record.counts.completed == 4


async def test_several_queues_share_the_parts_and_answer_each_line_once(any_world) -> None:
    async with any_world(slow, queues=3) as world:
        batch_id = await world.submit(lines(256))
        record = await world.ended(batch_id, timeout_s=40)
        assert record.counts.completed == 256
        asked = Counter(s.request_id for s in world.router.submissions if not s.tokens_received)
        assert len(asked) == 256
        # Of four parts; two of the queues may have taken them before the third asks.
        ran = [queue.shell.core.counters.lines_completed for queue in world.queues]
        assert sorted(ran)[1] > 0, ran
        output = await world.result(record.output_file_id)
        assert [line["custom_id"] for line in output] == [f"line {n}" for n in range(256)]


async def test_a_part_that_comes_twice_is_answered_once(a_world) -> None:
    async with a_world(slow) as world:
        batch_id = await world.submit(lines(60))
        await world.in_progress(batch_id)
        size_bytes = sum(len(line) + 1 for line in lines(60))
        again = BatchPart(
            batch_id=batch_id, part=0, first_line=1, first_byte=0, size_bytes=size_bytes
        )
        await world.bus.append(subjects.batch_part(batch_id), encode(again))
        await world.start_queue()
        record = await world.ended(batch_id)
        assert record.counts.completed == 60
        assert len(await world.result(record.output_file_id)) == 60
        left = await world.bus.subjects(subjects.RESULT_STREAM, subjects.batch_lines(batch_id))
        assert left == {}, "results are removed once the files are written"


async def test_a_broker_that_is_gone_for_a_while_costs_time_only(tmp_path: Path) -> None:
    with NatsServer(ServerOptions(data_folder=tmp_path / "nats")) as server:
        async with Worlds(tmp_path, nats_url=server.url)(slow) as world:
            batch_id = await world.submit(lines(120))
            await world.reaches(batch_id, lambda record: record.counts.completed > 10)
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(1.0)
            await asyncio.to_thread(server.start)
            while not world.bus.is_connected:
                await asyncio.sleep(0.02)
            record = await world.ended(batch_id, timeout_s=60)
            assert record.counts.completed == 120
            output = await world.result(record.output_file_id)
            assert [line["custom_id"] for line in output] == [f"line {n}" for n in range(120)]


async def test_what_is_past_its_time_or_nobodys_is_swept(a_world) -> None:
    async with a_world() as world:
        batch_id = await world.submit(lines(2), output_expires_after_s=1)
        record = await world.ended(batch_id)
        await world.a_file(lines(1), expires_at_unix_s=1)
        part = BatchPart(
            batch_id="batch_99999999", part=0, first_line=1, first_byte=0, size_bytes=9
        )
        await world.bus.append(subjects.batch_part(part.batch_id), encode(part))
        await asyncio.sleep(1.2)
        await Janitor(world.store, world.blobs).sweep()
        assert await world.store.files.get(record.output_file_id) is None
        kept = [blob.key for blob in await world.blobs.list_blobs()]
        assert kept == [record.input_file_id]
        assert await world.store.batches_with_work() == set()


async def test_what_cannot_be_answered_in_time_expires_with_what_is_and_keeps_nobody_else(
    a_world,
) -> None:
    """Three lines at a time, 0.1 s each: of 300 that are due in 3 s at most 90 are answered."""
    pace = Script(texts=["a"] * 2, pace_ns=50 * NS_PER_MS)
    async with a_world(lambda _: pace, lines_running_max=3) as world:
        hopeless = await world.submit(lines(300), completion_window="3s")
        other = await world.submit(lines(20), completion_window="60s")
        record = await world.ended(hopeless)
        assert record.status is BatchStatus.EXPIRED
        output = await world.result(record.output_file_id)
        errors = await world.result(record.error_file_id)
        told = [line["custom_id"] for line in output + errors]
        assert sorted(told) == sorted(f"line {n}" for n in range(300))
        assert len(output) == record.counts.completed > 0
        assert {line["error"]["code"] for line in errors} == {"batch_expired"}
        assert (await world.ended(other)).status is BatchStatus.COMPLETED

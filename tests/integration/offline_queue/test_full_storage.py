"""The bounds of the offline streams: what is refused at them, and that nothing accepted is lost."""

import asyncio

import pytest

from libs.contracts import subjects
from libs.contracts.batches import (
    BatchAccepted,
    BatchRejected,
    BatchRejectReason,
    BatchStatus,
    SubmitBatch,
)
from libs.contracts.wire import encode
from libs.runtime.bus import StreamFull
from services.offline_queue.store import JOB_OPTIONS, RESULT_OPTIONS
from tests.integration.offline_queue.conftest import COMPLETIONS, lines
from tests.integration.offline_queue.test_jobs import a_job

JOBS = subjects.offline("tide-tiny")


async def test_a_job_too_many_is_refused_to_whoever_publishes_it(any_world) -> None:
    async with any_world(queues=0, bounds={"jobs_max": 3}) as world:
        for number in range(3):
            await world.bus.append(JOBS, encode(a_job(f"j{number}", f"job {number}")))
        with pytest.raises(StreamFull):
            await world.bus.append(JOBS, encode(a_job("j3")))
        await world.start_queue()
        for number in range(3):
            ended = await world.job_result("tide-tiny", f"j{number}")
            assert ended.text == f"re:job{number}"
        await world.bus.append(JOBS, encode(a_job("j3", "at last")))
        assert (await world.job_result("tide-tiny", "j3")).text == "re:atlast"


async def test_a_batch_too_many_is_refused_and_accepted_when_there_is_room(any_world) -> None:
    others = subjects.offline("nobody-serves-it")
    async with any_world(queues=0, bounds={"jobs_max": 3}) as world:
        for number in range(3):
            await world.bus.append(others, encode(a_job(f"j{number}", f"job {number}")))
        await world.start_queue()
        batch = SubmitBatch(
            batch_id="batch_00000001",
            input_file_id=await world.a_file(lines(4)),
            endpoint=COMPLETIONS,
        )
        refused = await world.ask(batch)
        assert isinstance(refused, BatchRejected)
        assert refused.reason is BatchRejectReason.FULL
        assert refused.retry_after_ms is not None
        await world.bus.purge(subjects.JOB_STREAM, others)
        assert isinstance(await world.ask(batch), BatchAccepted)
        record = await world.ended(batch.batch_id)
        assert (record.status, record.counts.completed) == (BatchStatus.COMPLETED, 4)


async def test_lines_whose_results_find_no_room_are_answered_again_when_there_is_some(
    any_world,
) -> None:
    others = subjects.offline_result("tide-tiny", "of-another")
    async with any_world(bounds={"results_max": 5}) as world:
        for number in range(3):
            await world.bus.append(others, b"{}", message_id=f"other-{number}")
        batch_id = await world.submit(lines(4))
        await world.reaches(batch_id, lambda record: record.counts.completed == 2)
        await asyncio.sleep(0.2)  # The other two are answered, and have nowhere to go.
        assert (await world.record(batch_id)).status is BatchStatus.IN_PROGRESS
        await world.bus.purge(subjects.RESULT_STREAM, others)
        record = await world.ended(batch_id)
        assert (record.status, record.counts.completed) == (BatchStatus.COMPLETED, 4)
        answers = await world.result(record.output_file_id)
        assert sorted(answer["custom_id"] for answer in answers) == [f"line {n}" for n in range(4)]


def test_both_streams_are_bounded_and_refuse_what_is_new() -> None:
    for options in (JOB_OPTIONS, RESULT_OPTIONS):
        assert options.discard == "new"
        assert options.messages_max > 0
        assert options.bytes_max > 0

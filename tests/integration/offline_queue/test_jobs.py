"""Single jobs: published by anybody, captured by a stream, answered into another."""

import asyncio
import json

from libs.contracts import subjects
from libs.contracts.batches import SubmitJob
from libs.contracts.online import FailReason, FinishReason, RejectReason, SubmitRequest
from libs.contracts.wire import encode
from libs.kernel.units import NS_PER_MS
from tests.integration.offline_queue.conftest import echo_of
from tests.scripted_router import Script


def a_job(request_id: str, prompt: str = "the tide", **fields: object) -> SubmitJob:
    request = SubmitRequest(request_id=request_id, prompt=prompt)
    return SubmitJob(request=request, **fields)  # type: ignore[arg-type]


async def test_a_job_published_as_json_is_answered_once(any_world) -> None:
    async with any_world() as world:
        job = {
            "type": "submit_job.v1",
            "request": {"type": "submit_request.v1", "request_id": "j1", "prompt": "the tide"},
        }
        await world.bus.append(subjects.offline("tide-tiny"), json.dumps(job).encode())
        ended = await world.job_result("tide-tiny", "j1")
        assert (ended.text, ended.finish_reason) == ("re:thetide", FinishReason.STOP)
        assert ended.token_ids == (100, 101, 102, 103)
        assert (ended.prompt_tokens, ended.completion_tokens, ended.deliveries) == (7, 4, 1)
        # The answer is stored before the job is acknowledged.
        while (await world.bus.stream_state(subjects.JOB_STREAM)).messages:
            await asyncio.sleep(0.01)


async def test_many_jobs_of_two_tenants_are_all_answered(a_world) -> None:
    async with a_world(queues=2) as world:
        for number in range(40):
            job = a_job(f"j{number}", f"job {number}", tenant=f"team-{number % 2}")
            await world.bus.append(subjects.offline("tide-tiny"), encode(job))
        for number in range(40):
            ended = await world.job_result("tide-tiny", f"j{number}")
            assert ended.text == f"re:job{number}"
        assert {s.tenant for s in world.router.submissions} == {"team-0", "team-1"}


async def test_a_job_that_is_refused_says_why(a_world) -> None:
    refused = Script(rejection=RejectReason.CONTEXT_LENGTH_EXCEEDED)
    async with a_world(lambda _: refused) as world:
        await world.bus.append(subjects.offline("tide-tiny"), encode(a_job("j1")))
        ended = await world.job_result("tide-tiny", "j1")
        assert ended.finish_reason is None
        assert ended.fail_reason is RejectReason.CONTEXT_LENGTH_EXCEEDED


async def test_a_job_that_is_too_late_says_so_and_is_not_asked(a_world) -> None:
    async with a_world() as world:
        job = a_job("j1", complete_within_s=1, submitted_at_unix_s=1)
        await world.bus.append(subjects.offline("tide-tiny"), encode(job))
        ended = await world.job_result("tide-tiny", "j1")
        assert ended.fail_reason is FailReason.EXPIRED
        assert world.router.submissions == []


async def test_what_is_no_job_is_thrown_away_and_nothing_else(a_world) -> None:
    async with a_world() as world:
        await world.bus.append(subjects.offline("tide-tiny"), b"{}")
        await world.bus.append(subjects.offline("tide-tiny"), encode(a_job("j1")))
        assert (await world.job_result("tide-tiny", "j1")).text == "re:thetide"


async def test_a_job_outlives_its_queue(a_world) -> None:
    def slow(submission: SubmitRequest) -> Script:
        return Script(texts=echo_of(submission).texts * 5, pace_ns=50 * NS_PER_MS)

    async with a_world(slow) as world:
        await world.bus.append(subjects.offline("tide-tiny"), encode(a_job("j1")))
        while not world.router.submissions:
            await asyncio.sleep(0.01)
        await world.queues[0].die()
        await world.start_queue()
        ended = await world.job_result("tide-tiny", "j1")
        assert ended.text == "re:thetide" * 5
        assert ended.deliveries == 2

"""A batch from its file to its results, over a bus in memory and over NATS."""

import asyncio
from dataclasses import replace

import pytest

from libs.contracts import subjects
from libs.contracts.batches import (
    BATCH_ANSWERS,
    OFFLINE_PRIORITY,
    BatchRejectReason,
    BatchStatus,
    CancelBatch,
    FilePurpose,
    PauseBatch,
    ResumeBatch,
    SubmitBatch,
)
from libs.contracts.online import FailReason, RejectReason, SubmitRequest
from tests.integration.offline_queue.conftest import COMPLETIONS, a_line, echo_of, lines
from tests.scripted_router import LossyLink, Script


async def test_every_line_is_answered_once_as_post_would_have_answered_it(any_world) -> None:
    async with any_world() as world:
        batch_id = await world.submit(lines(150), metadata={"run": "1"})
        record = await world.ended(batch_id)
        assert record.status is BatchStatus.COMPLETED
        assert (record.counts.total, record.counts.completed, record.counts.failed) == (150, 150, 0)
        output = await world.result(record.output_file_id)
        assert [line["custom_id"] for line in output] == [f"line {n}" for n in range(150)]
        for number, line in enumerate(output):
            body = line["response"]["body"]
            assert line["error"] is None
            assert line["response"]["status_code"] == 200
            assert body["object"] == "text_completion"
            assert body["choices"][0]["text"] == f"re:prompt{number:03d}"
        assert record.error_file_id is None
        assert record.tokens_prompt == 150 * 7


async def test_lines_that_the_fleet_refuses_go_to_the_error_file_with_their_status(a_world) -> None:
    def script_of(submission: SubmitRequest) -> Script:
        if submission.prompt == "prompt 003":
            return Script(rejection=RejectReason.CONTEXT_LENGTH_EXCEEDED)
        return echo_of(submission)

    async with a_world(script_of) as world:
        record = await world.ended(await world.submit(lines(10)))
        assert record.status is BatchStatus.COMPLETED
        assert (record.counts.completed, record.counts.failed) == (9, 1)
        (refused,) = await world.result(record.error_file_id)
        assert refused["custom_id"] == "line 3"
        assert refused["response"]["status_code"] == 400
        assert refused["response"]["body"]["error"]["code"] == "context_length_exceeded"
        assert len(await world.result(record.output_file_id)) == 9


async def test_a_line_that_fails_in_the_fleet_is_tried_again_and_given_up_in_the_end(
    a_world,
) -> None:
    failing: dict[str, int] = {}

    def script_of(submission: SubmitRequest) -> Script:
        tries = failing[submission.prompt] = failing.get(submission.prompt, 0) + 1
        is_bad = submission.prompt == "prompt 001" or (
            submission.prompt == "prompt 002" and tries < 3
        )
        return Script(failure=FailReason.WORKERS_DIED) if is_bad else echo_of(submission)

    async with a_world(script_of) as world:
        record = await world.ended(await world.submit(lines(4)))
        (failed,) = await world.result(record.error_file_id)
        assert failed["custom_id"] == "line 1"
        assert failed["response"] is None
        assert "workers_died" in failed["error"]["message"]
        assert failing == {"prompt 000": 1, "prompt 001": 4, "prompt 002": 3, "prompt 003": 1}


async def test_a_router_without_room_slows_the_queue_down_and_loses_nothing(a_world) -> None:
    def script_of(submission: SubmitRequest) -> Script:
        busy = {"rejection": RejectReason.OVERLOADED, "rejections": 2, "retry_after_ms": 10}
        return replace(echo_of(submission), **busy)

    async with a_world(script_of) as world:
        record = await world.ended(await world.submit(lines(30)))
        assert record.counts.completed == 30
        core = world.queues[0].shell.core
        assert core.counters.lines_put_off == 60
        assert core.counters.lines_failed == 0


async def test_lost_and_doubled_messages_change_nothing(a_world) -> None:
    link = LossyLink(lost=0.1, doubled=0.2, overtaken=0.2, seed=3)
    async with a_world(link=link) as world:
        record = await world.ended(await world.submit(lines(20)), timeout_s=40)
        output = await world.result(record.output_file_id)
        texts = [line["response"]["body"]["choices"][0]["text"] for line in output]
        assert texts == [f"re:prompt{number:03d}" for number in range(20)]


async def test_several_answers_per_line_and_scores_look_as_post_shows_them(a_world) -> None:
    async with a_world() as world:
        asked = [
            a_line(0, "a", n=3),
            a_line(1, "b", logprobs=2, echo=True),
            a_line(2, "c", return_token_ids=True),
        ]
        record = await world.ended(await world.submit(asked))
        assert record.counts.completed == 3, await world.result(record.error_file_id)
        first, second, third = [
            line["response"]["body"] for line in await world.result(record.output_file_id)
        ]
        assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
        assert first["usage"] == {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
        assert second["choices"][0]["text"] == "bre:b"
        assert second["choices"][0]["logprobs"]["text_offset"][0] == 0
        assert third["choices"][0]["prompt_token_ids"] == [ord("c")]


async def test_a_body_too_long_for_a_message_is_in_the_output_all_the_same(a_world) -> None:
    long = ["x" * 100_000] * 8
    async with a_world(lambda _: Script(texts=long)) as world:
        record = await world.ended(await world.submit(lines(2)))
        output = await world.result(record.output_file_id)
        texts = [line["response"]["body"]["choices"][0]["text"] for line in output]
        assert texts == ["x" * 800_000] * 2
        assert await world.blobs.list_blobs("line-") == [], "not needed any more"


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"", "empty_file", None),
        (b"\n \n", "empty_file", None),
        (b"{}", "missing_required_parameter", 1),
        (b"not json\n", "invalid_json_line", 1),
        (b"\xff\xfe\n", "invalid_json_line", 1),
        (b"[" * 5000 + b"\n", "invalid_json_line", 1),
    ],
)
async def test_a_file_that_cannot_be_asked_fails_with_its_lines(
    a_world, content: bytes, code: str, line: int | None
) -> None:
    async with a_world() as world:
        record = await world.ended(await world.submit(content))
        assert record.status is BatchStatus.FAILED
        assert (record.errors[0].code, record.errors[0].line) == (code, line)
        assert record.failed_at_unix_s is not None
        assert world.router.submissions == [], "nothing of it was asked"


async def test_a_cancelled_batch_keeps_what_is_answered(any_world) -> None:
    def script_of(submission: SubmitRequest) -> Script:
        is_quick = int(submission.prompt.split(" ")[1]) < 5
        return echo_of(submission) if is_quick else Script(stalls_after=1)

    async with any_world(script_of) as world:
        batch_id = await world.submit(lines(100))
        await world.reaches(batch_id, lambda record: record.counts.completed == 5)
        answer = await world.ask(CancelBatch(batch_id=batch_id))
        assert answer.record.status is BatchStatus.CANCELLING
        record = await world.ended(batch_id)
        assert record.status is BatchStatus.CANCELLED
        assert len(await world.result(record.output_file_id)) == 5
        errors = await world.result(record.error_file_id)
        assert [line["custom_id"] for line in errors] == [f"line {n}" for n in range(5, 100)]
        assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
        running = {s.request_id for s in world.router.submissions if s.prompt == "prompt 005"}
        await asyncio.wait_for(world.router.cancelled(running.pop()), 5)
        again = await world.ask(CancelBatch(batch_id=batch_id))
        assert again.reason is BatchRejectReason.CONFLICT


async def test_a_paused_batch_takes_up_no_line_until_it_is_resumed(a_world) -> None:
    async with a_world(queues=0) as world:
        await world.start_queue(lines_running_max=1)
        batch_id = await world.submit(lines(200))
        await world.reaches(batch_id, lambda record: record.counts.completed > 3)
        assert (await world.ask(PauseBatch(batch_id=batch_id))).record.is_paused
        await asyncio.sleep(0.2)
        paused = len(world.router.submissions)
        await asyncio.sleep(0.3)
        assert len(world.router.submissions) == paused
        assert not (await world.ask(ResumeBatch(batch_id=batch_id))).record.is_paused
        assert (await world.ended(batch_id)).counts.completed == 200


async def test_what_is_not_answered_by_the_deadline_expires_and_the_rest_is_kept(any_world) -> None:
    def script_of(submission: SubmitRequest) -> Script:
        is_quick = int(submission.prompt.split(" ")[1]) % 2 == 0
        return echo_of(submission) if is_quick else Script(stalls_after=0)

    async with any_world(script_of) as world:
        batch_id = await world.submit(lines(20), completion_window="2s")
        record = await world.ended(batch_id)
        assert record.status is BatchStatus.EXPIRED
        assert record.expired_at_unix_s >= record.deadline_at_unix_s
        output = await world.result(record.output_file_id)
        errors = await world.result(record.error_file_id)
        assert [line["custom_id"] for line in output] == [f"line {n}" for n in range(0, 20, 2)]
        assert [line["custom_id"] for line in errors] == [f"line {n}" for n in range(1, 20, 2)]
        assert {line["error"]["code"] for line in errors} == {"batch_expired"}


async def test_the_same_question_never_makes_a_second_batch(a_world) -> None:
    async with a_world() as world:
        file_id = await world.a_file(lines(3))
        question = SubmitBatch(
            batch_id="batch_00000042", input_file_id=file_id, endpoint="/v1/completions"
        )
        first = await world.ask(question)
        assert (await world.ask(question)).record.created_at_unix_s == (
            first.record.created_at_unix_s
        )
        other = question.model_copy(update={"completion_window": "1h"})
        assert (await world.ask(other)).reason is BatchRejectReason.CONFLICT
        record = await world.ended("batch_00000042")
        assert (await world.ask(question)).record == record
        assert len(world.router.submissions) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input_file_id": "file-99999999"}, BatchRejectReason.FILE_NOT_FOUND),
        ({"tenant": "somebody-else"}, BatchRejectReason.FILE_NOT_FOUND),
        ({"completion_window": "soon"}, BatchRejectReason.INVALID),
        ({"completion_window": "400d"}, BatchRejectReason.INVALID),
        ({"endpoint": "/v1/embeddings"}, BatchRejectReason.INVALID),
    ],
)
async def test_a_batch_that_cannot_be_is_refused_by_name(a_world, change, reason) -> None:
    async with a_world() as world:
        file_id = await world.a_file(lines(1))
        asked = {"batch_id": "batch_00000001", "input_file_id": file_id, "endpoint": COMPLETIONS}
        answer = await world.ask(SubmitBatch(**{**asked, **change}))
        assert answer.reason is reason
        assert answer.parameter == next(iter(change)).replace("tenant", "input_file_id")


async def test_questions_that_nobody_can_read_or_about_nothing_are_answered(a_world) -> None:
    async with a_world() as world:
        reply = await world.bus.request(subjects.BATCH_CONTROL, b"{}")
        assert BATCH_ANSWERS.decode(reply.payload).reason is BatchRejectReason.MALFORMED
        for question in (CancelBatch, PauseBatch, ResumeBatch):
            answer = await world.ask(question(batch_id="batch_00000404"))
            assert answer.reason is BatchRejectReason.BATCH_NOT_FOUND


async def test_lines_go_out_as_offline_work_on_behalf_of_their_tenant(a_world) -> None:
    async with a_world() as world:
        file_id = await world.a_file(lines(1), tenant="team-a")
        await world.ask(
            SubmitBatch(
                batch_id="batch_00000001",
                input_file_id=file_id,
                endpoint=COMPLETIONS,
                tenant="team-a",
            )
        )
        record = await world.ended("batch_00000001")
        (asked,) = world.router.submissions
        assert (asked.tenant, asked.priority) == ("team-a", OFFLINE_PRIORITY)
        assert 86_000_000 < asked.expires_after_ms <= 86_400_000
        file = await world.store.files.get(record.output_file_id)
        assert (file.tenant, file.purpose) == ("team-a", FilePurpose.BATCH_OUTPUT)
        assert file.size_bytes == await world.blobs.size_bytes(file.file_id)

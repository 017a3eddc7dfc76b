"""OpenAI's Batch API through its own client, in front of a scripted offline queue."""

import asyncio
import json
import time

import httpx
import openai
import pytest

from libs.client.batch_ids import new_batch_id
from libs.contracts import subjects
from libs.contracts.batches import (
    BatchRejected,
    BatchRejectReason,
    BatchStatus,
    LineError,
    SubmitBatch,
)
from tests.scripted_queue import Line, QueueScript

ENDPOINT = "/v1/chat/completions"


def lines_of(count: int) -> bytes:
    lines = [
        {"custom_id": f"c{n}", "method": "POST", "url": ENDPOINT, "body": {"number": n}}
        for n in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def echo(body: Line) -> Line | None:
    """Answer even numbers; odd ones fail."""
    return {"seen": body["number"]} if body["number"] % 2 == 0 else None


def the_error(response: httpx.Response) -> dict:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


async def a_file(stack, content: bytes = lines_of(4)) -> str:
    file = await stack.openai.files.create(file=("lines.jsonl", content), purpose="batch")
    return file.id


async def a_request(stack, **changes: object) -> dict:
    return {
        "input_file_id": await a_file(stack),
        "endpoint": ENDPOINT,
        "completion_window": "24h",
        **changes,
    }


async def test_a_file_is_answered_and_its_results_are_files(any_stack) -> None:
    async with any_stack(queue=QueueScript(answer=echo)) as stack:
        batch = await stack.openai.batches.create(
            input_file_id=await a_file(stack),
            endpoint=ENDPOINT,
            completion_window="24h",
            metadata={"purpose": "test"},
        )
        batch = await stack.openai.batches.retrieve(batch.id)
        assert batch.status == "completed"
        assert batch.metadata == {"purpose": "test"}
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (4, 2, 2)
        assert batch.usage.total_tokens == 0
        output = (await stack.openai.files.content(batch.output_file_id)).text
        answered = {row["custom_id"]: row for row in map(json.loads, output.splitlines())}
        assert set(answered) == {"c0", "c2"}
        assert answered["c2"]["response"]["body"] == {"seen": 2}
        errors = (await stack.openai.files.content(batch.error_file_id)).text
        assert {json.loads(row)["custom_id"] for row in errors.splitlines()} == {"c1", "c3"}
        outputs = [f.id async for f in stack.openai.files.list(purpose="batch_output")]
        assert set(outputs) == {batch.output_file_id, batch.error_file_id}


async def test_every_field_of_a_batch_is_there(a_stack) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        request = await a_request(stack)
        batch = (await stack.http.post("/v1/batches", json=request)).json()
        assert batch["status"] == "in_progress"
        assert batch["created_at"] <= batch["in_progress_at"] < batch["expires_at"]
        error = LineError(code="invalid_json_line", message="no JSON", line=3, parameter="body")
        await stack.queue.change(
            batch["id"],
            status=BatchStatus.FAILED,
            failed_at_unix_s=5,
            errors=(error,),
            warning="late",
            tokens_prompt=3,
            tokens_generated=4,
            alias="tide-tiny",
        )
        batch = (await stack.http.get(f"/v1/batches/{batch['id']}")).json()
        assert batch["errors"] == {
            "object": "list",
            "data": [
                {"code": "invalid_json_line", "message": "no JSON", "line": 3, "param": "body"}
            ],
        }
        assert (batch["failed_at"], batch["model"], batch["warning"]) == (5, "tide-tiny", "late")
        assert batch["usage"]["total_tokens"] == 7
        shown = set(openai.types.Batch.model_fields)
        assert shown <= set(batch), "a field of OpenAI's object is missing"


async def test_batches_are_listed_newest_first_page_by_page(any_stack) -> None:
    async with any_stack(queue=QueueScript()) as stack:
        # A tenant of its own: the broker of this file's tests holds batches of other tests.
        client = stack.openai.with_options(default_headers={"x-tenant": "listing"})
        file = await client.files.create(file=("a", lines_of(1)), purpose="batch")
        request = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}
        made = []
        for number in range(5):
            batch = await client.batches.create(**request, metadata={"n": str(number)})
            made.append(batch.id)
        assert [b.id async for b in client.batches.list(limit=2)] == made[::-1]
        page = await client.batches.list(limit=2, after=made[3])
        assert [b.id for b in page.data] == [made[2], made[1]]
        assert page.has_more
        listed = (await stack.http.get("/v1/batches", headers={"x-tenant": "listing"})).json()
        assert (listed["first_id"], listed["last_id"]) == (made[-1], made[0])


async def test_a_batch_is_cancelled_once(any_stack) -> None:
    async with any_stack(queue=QueueScript()) as stack:
        batch = await stack.openai.batches.create(**await a_request(stack))
        cancelled = await stack.openai.batches.cancel(batch.id)
        assert cancelled.status in ("cancelling", "cancelled")
        patient = stack.openai.with_options(max_retries=2)
        questions = len(stack.queue.script.questions)
        with pytest.raises(openai.ConflictError) as refused:
            await patient.batches.cancel(batch.id)
        assert "already" in refused.value.message
        assert len(stack.queue.script.questions) == questions + 1, "a conflict was tried again"


async def test_a_second_attempt_to_cancel_is_no_conflict(a_stack) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        batch = await stack.openai.batches.create(**await a_request(stack))
        for attempt in ("0", "1"):
            response = await stack.http.post(
                f"/v1/batches/{batch.id}/cancel", headers={"x-stainless-retry-count": attempt}
            )
            assert response.json()["status"] == "cancelled"


async def test_a_batch_is_paused_and_resumed(a_stack) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        batch = await stack.openai.batches.create(**await a_request(stack))
        paused = await stack.http.post(f"/v1/batches/{batch.id}/pause")
        assert paused.json()["is_paused"]
        resumed = await stack.http.post(f"/v1/batches/{batch.id}/resume")
        assert not resumed.json()["is_paused"]


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": 24}, "completion_window"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, None),
        ({"metadata": {"key": "v" * 513}}, "metadata.key"),
        ({"metadata": {"key": 5}}, "metadata.key"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"input_file_id": ""}, "input_file_id"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, None),
        ({"output_expires_after": {"anchor": "last_active_at", "seconds": 3600}}, None),
    ],
)
async def test_a_wrong_field_is_named_and_nobody_is_asked(a_stack, change, parameter) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        response = await stack.http.post("/v1/batches", json=await a_request(stack, **change))
        assert response.status_code == 400, response.text
        if parameter is not None:
            assert the_error(response)["param"] == parameter
        assert stack.queue.script.questions == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_request_is_one_clear_400(a_stack, body) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        response = await stack.http.post("/v1/batches", content=body)
        assert response.status_code == 400
        the_error(response)


async def test_a_body_too_large_is_refused(a_stack) -> None:
    async with a_stack(queue=QueueScript(), body_bytes_max=1000) as stack:
        response = await stack.http.post("/v1/batches", content=b" " * 1001)
        assert response.status_code == 413


@pytest.mark.parametrize("window", ["24h", "30m", "7d"])
async def test_a_window_is_minutes_hours_or_days(a_stack, window) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        request = await a_request(stack, completion_window=window)
        batch = (await stack.http.post("/v1/batches", json=request)).json()
        assert batch["completion_window"] == window


@pytest.mark.parametrize("file_id", ["file-0123456789", "nonsense", "a.b", "*"])
async def test_an_input_file_that_is_not_there_is_a_404(a_stack, file_id) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        request = await a_request(stack, input_file_id=file_id)
        response = await stack.http.post("/v1/batches", json=request)
        assert response.status_code == 404
        assert the_error(response)["param"] == "input_file_id"


async def test_the_output_of_a_batch_is_no_input(a_stack) -> None:
    async with a_stack(queue=QueueScript(answer=echo)) as stack:
        request = await a_request(stack)
        batch = await stack.openai.batches.create(**request)
        again = {**request, "input_file_id": batch.output_file_id}
        response = await stack.http.post("/v1/batches", json=again)
        assert response.status_code == 400
        assert "purpose" in the_error(response)["message"]


@pytest.mark.parametrize("batch_id", ["batch_0123456789", "nonsense", "a.b.*", "ä"])
async def test_an_id_that_names_nothing_is_a_404(a_stack, batch_id) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        paths = [("GET", "")] + [("POST", f"/{verb}") for verb in ("cancel", "pause", "resume")]
        for method, path in paths:
            response = await stack.http.request(method, f"/v1/batches/{batch_id}{path}")
            assert response.status_code == 404
            assert the_error(response)["code"] == "batch_not_found"


async def test_a_tenant_sees_its_own_batches_only(a_stack) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        theirs = stack.openai.with_options(default_headers={"x-tenant": "team-a"})
        file = await theirs.files.create(file=("a", lines_of(1)), purpose="batch")
        request = {"endpoint": ENDPOINT, "completion_window": "24h", "input_file_id": file.id}
        with pytest.raises(openai.NotFoundError):
            await stack.openai.batches.create(**request)
        batch = await theirs.batches.create(**request)
        question = stack.queue.script.questions[0]
        assert isinstance(question, SubmitBatch)
        assert question.tenant == "team-a"
        with pytest.raises(openai.NotFoundError):
            await stack.openai.batches.retrieve(batch.id)
        with pytest.raises(openai.NotFoundError):
            await stack.openai.batches.cancel(batch.id)
        assert [b async for b in stack.openai.batches.list()] == []
        assert [b.id async for b in theirs.batches.list()] == [batch.id]


async def test_a_tenant_goes_with_every_request_to_the_fleet(a_stack) -> None:
    async with a_stack() as stack:
        for path, body in (
            ("/v1/completions", {"prompt": ["a", "b"]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ):
            request = {"model": "tide-tiny", **body}
            response = await stack.http.post(path, json=request, headers={"x-tenant": "team-a"})
            assert response.status_code == 200
        assert [s.tenant for s in stack.router.submissions] == ["team-a"] * 3
        refused = await stack.http.post(path, json=request, headers={"x-tenant": "a b"})
        assert refused.status_code == 400


async def test_without_a_queue_a_batch_is_told_to_come_back(a_stack) -> None:
    async with a_stack(acceptance_wait_s=0.1) as stack:
        response = await stack.http.post("/v1/batches", json=await a_request(stack))
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert the_error(response)["code"] == "unavailable"


async def test_a_queue_that_is_full_is_a_429_with_its_own_time(a_stack) -> None:
    refusal = BatchRejected(
        reason=BatchRejectReason.FULL, message="too many batches", retry_after_ms=7000
    )
    async with a_stack(queue=QueueScript(refusal=refusal)) as stack:
        response = await stack.http.post("/v1/batches", json=await a_request(stack))
        assert response.status_code == 429
        assert response.headers["retry-after"] == "7"


async def test_the_same_key_is_the_same_batch_and_another_key_another(any_stack) -> None:
    async with any_stack(queue=QueueScript()) as stack:
        request = await a_request(stack)

        async def post(key: str, **changes: object) -> httpx.Response:
            return await stack.http.post(
                "/v1/batches", json={**request, **changes}, headers={"idempotency-key": key}
            )

        first, repeated, other = await asyncio.gather(post("one"), post("one"), post("two"))
        assert first.json()["id"] == repeated.json()["id"] != other.json()["id"]
        misused = await post("one", completion_window="1h")
        assert misused.status_code == 400
        assert the_error(misused)["param"] == "idempotency-key"
        assert (await post("x" * 257)).status_code == 400


async def test_a_second_attempt_of_openais_client_makes_no_second_batch(a_stack) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        request = await a_request(stack)

        async def post(attempt: int, **changes: object) -> str:
            headers = {"x-stainless-retry-count": str(attempt)}
            body = {**request, **changes}
            response = await stack.http.post("/v1/batches", json=body, headers=headers)
            batch_id: str = response.json()["id"]
            return batch_id

        first = await post(0)
        assert await post(1) == first
        assert await post(1, completion_window="1h") != first
        assert await post(0) != first, "asked for anew, it is a new batch"


async def test_the_first_attempt_that_never_arrived_does_not_keep_the_second_out(a_stack) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        headers = {"x-stainless-retry-count": "1"}
        request = await a_request(stack)
        response = await stack.http.post("/v1/batches", json=request, headers=headers)
        assert response.status_code == 200


def test_ids_sort_by_time_and_fit_a_subject() -> None:
    now_unix_ns = time.time_ns()
    ids = [new_batch_id(now_unix_ns=now_unix_ns + n * 1_000_000) for n in range(50)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 50
    assert subjects.batch_part(ids[0]).endswith(ids[0])

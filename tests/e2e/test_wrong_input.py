"""Wrong input gets one clear error of the protocol it came in, while other requests run on."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest

from libs.client.client import TideClient
from libs.client.errors import RequestRefused
from libs.contracts.online import RejectReason
from libs.contracts.reports import REPORTS, WorkerReport
from libs.contracts.subjects import WORKER_REPORTS
from libs.kernel.errors import EXIT_CONFIG_ERROR
from libs.runtime.bus import PayloadTooLarge
from libs.runtime.nats_bus import NatsBus
from services.launcher.model_source import bundled_model

QUESTION = [{"role": "user", "content": "What does str.split do?"}]
SUBJECT = "tide.v1.online.tide-tiny"
Beside = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def under_test(start_fleet: Callable[..., Any]) -> Any:
    return start_fleet(workers=1, routers=1)


async def tokens_seen(client: TideClient) -> AsyncIterator[int]:
    """Stream an answer that is long enough to have something happen beside it."""
    stream = client.stream(
        model="tide-tiny", messages=QUESTION, max_tokens=100, temperature=0.0, ignore_eos=True
    )
    async with stream:
        async for token in stream:
            yield token.token_id


@pytest.fixture(scope="module")
def alone(under_test: Any) -> list[int]:
    """The stream's tokens when nothing happens beside it."""

    async def run() -> list[int]:
        async with await TideClient.connect(under_test.fleet.nats_url) as client:
            return [token_id async for token_id in tokens_seen(client)]

    tokens: list[int] = under_test.runner.run(run())
    return tokens


@pytest.fixture
def beside_a_running_stream(under_test: Any, alone: list[int]) -> Beside:
    """Runs work while a stream runs, which must come out as it does alone."""

    async def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with await TideClient.connect(under_test.fleet.nats_url) as client:
            stream = tokens_seen(client)
            first = await anext(stream)
            working = asyncio.create_task(work())
            assert [first, *[token_id async for token_id in stream]] == alone
            await working

    return lambda work: under_test.runner.run(run(work))


async def answer_to(url: str, payload: bytes, *, subject: str = SUBJECT) -> dict[str, Any]:
    """Publish raw bytes and return the answer as it comes."""
    bus = await NatsBus.connect(url, name="raw")
    try:
        answer = await bus.request(subject, payload)
    finally:
        await bus.close()
    if answer.payload.startswith(b"{"):
        decoded: dict[str, Any] = json.loads(answer.payload)
    else:
        decoded = msgpack.unpackb(answer.payload)
    return decoded


def a_request(**fields: object) -> dict[str, object]:
    return {"request_id": "wrong", "prompt": "hello", "max_tokens": 4, **fields}


RAW_CASES = [
    (b"\x81\xa4type", "malformed"),
    (b"\xc1\xc1\xc1", "malformed"),
    (b"", "malformed"),
    (b"{not json", "malformed"),
    (b'{"request_id": "x"}', "malformed"),
    (b"[1, 2, 3]", "malformed"),
    (json.dumps(a_request(request_id="has space")).encode(), "malformed"),
    (json.dumps(a_request(prompt="")).encode(), "malformed"),
    (json.dumps(a_request(prompt_token_ids=[1])).encode(), "malformed"),
    (json.dumps(a_request(max_tokens=0)).encode(), "malformed"),
    (json.dumps(a_request(sampling={"temperature": 9})).encode(), "malformed"),
    (json.dumps(a_request(stop=["a", "b", "c", "d", "e"])).encode(), "malformed"),
    (json.dumps(a_request(sampling={"seed": 2**63})).encode(), "malformed"),
    (json.dumps(a_request(sampling={"logprobs": 21})).encode(), "malformed"),
    (json.dumps(a_request(sampling={"logit_bias": {"five": 1}})).encode(), "malformed"),
    (json.dumps(a_request(sampling={"logit_bias": {"5": 101}})).encode(), "malformed"),
    (json.dumps(a_request(sampling={"min_tokens": 5})).encode(), "malformed"),
    (json.dumps(a_request(tools=[{"type": "function"}])).encode(), "malformed"),
    (json.dumps(a_request(sampling={"logit_bias": {"999999": 1}})).encode(), "invalid"),
    (json.dumps(a_request(sampling={"stop_token_ids": [999999]})).encode(), "invalid"),
    (msgpack.packb(a_request(prompt=None, prompt_token_ids=[-1])), "malformed"),
    (msgpack.packb(a_request(prompt=None, prompt_token_ids=[2047, 999999])), "invalid"),
    (msgpack.packb(a_request(max_tokens=100_000)), "context_length_exceeded"),
    (msgpack.packb(a_request(prompt="word " * 10_000)), "context_length_exceeded"),
]


@pytest.mark.parametrize(("payload", "reason"), RAW_CASES)
def test_over_nats_a_wrong_message_is_rejected_in_its_own_encoding(
    under_test: Any, beside_a_running_stream: Beside, payload: bytes, reason: str
) -> None:
    async def work() -> None:
        answer = await answer_to(under_test.fleet.nats_url, payload)
        assert answer["type"] == "request_rejected.v1"
        assert answer["reason"] == reason
        assert answer["message"]
        assert answer.get("retry_after_ms") is None

    beside_a_running_stream(work)


def test_over_nats_an_unknown_model_is_named(
    under_test: Any, beside_a_running_stream: Beside
) -> None:
    async def work() -> None:
        payload = json.dumps(a_request()).encode()
        answer = await answer_to(under_test.fleet.nats_url, payload, subject="tide.v1.online.gpt-9")
        assert answer["reason"] == "model_not_found"
        assert "gpt-9" in answer["message"]

    beside_a_running_stream(work)


def test_the_client_refuses_what_the_broker_could_not_carry(
    under_test: Any, beside_a_running_stream: Beside
) -> None:
    async def work() -> None:
        async with await TideClient.connect(under_test.fleet.nats_url) as client:
            with pytest.raises((RequestRefused, PayloadTooLarge)) as refusal:
                await client.complete(model="tide-tiny", prompt="x" * 9_000_000)
            if isinstance(refusal.value, RequestRefused):
                assert refusal.value.reason is RejectReason.TOO_LARGE

    beside_a_running_stream(work)


def a_body(**fields: object) -> bytes:
    return json.dumps({"model": "tide-tiny", "messages": QUESTION, **fields}).encode()


def a_schema(schema: dict[str, Any]) -> bytes:
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return a_body(response_format=response_format)


HTTP_CASES: list[tuple[bytes, int]] = [
    (a_body(n=17), 400),
    (a_body(logprobs=True, top_logprobs=21), 400),
    (a_body(stop=["a", "b", "c", "d", "e"]), 400),
    (a_body(seed=2**63), 400),
    (a_body(logit_bias={"five": 1}), 400),
    (a_body(logit_bias={"5": 101}), 400),
    (a_body(logit_bias={"999999": 1}), 400),
    (a_body(stop_token_ids=[999999]), 400),
    (a_body(min_tokens=5, max_tokens=4), 400),
    (a_body(max_tokens=100_000), 400),
    (a_body(response_format={"type": "json_schema", "json_schema": {"schema": 5}}), 400),
    (a_schema({"type": "nonsense"}), 400),
    (a_schema({"$ref": "https://example.com/schema.json"}), 400),
    (a_schema({"type": "integer", "multipleOf": 828_000_007}), 400),
    (a_schema({"title": "x" * 70_000}), 400),
    (b"{not json", 400),
    (b"", 400),
    (b'"text"', 400),
    (json.dumps({"model": "tide-tiny"}).encode(), 400),
    (json.dumps({"model": "tide-tiny", "messages": []}).encode(), 400),
    (json.dumps({"model": "nope", "messages": QUESTION}).encode(), 404),
    (
        json.dumps(
            {"model": "tide-tiny", "messages": [{"role": "user", "content": "word " * 10_000}]}
        ).encode(),
        400,
    ),
    (json.dumps({"model": "tide-tiny", "messages": QUESTION, "max_tokens": -1}).encode(), 400),
    (json.dumps({"model": "tide-tiny", "messages": QUESTION, "temperature": 3}).encode(), 400),
    (
        json.dumps(
            {"model": "tide-tiny", "messages": [{"role": "user", "content": "x" * 9_000_000}]}
        ).encode(),
        413,
    ),
]


@pytest.mark.parametrize(("body", "status"), HTTP_CASES)
def test_over_http_a_wrong_body_gets_openais_envelope(
    under_test: Any, beside_a_running_stream: Beside, body: bytes, status: int
) -> None:
    async def work() -> None:
        async with httpx.AsyncClient(base_url=under_test.fleet.http_url, timeout=30) as http:
            response = await http.post(
                "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
            )
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "Traceback" not in response.text

    beside_a_running_stream(work)


def test_over_nats_a_wrong_question_about_text_is_rejected(
    under_test: Any, beside_a_running_stream: Beside
) -> None:
    async def work() -> None:
        for question, reason in (
            (b"{not json", "malformed"),
            (b'{"type": "tokenize_text.v1"}', "malformed"),
            (b'{"type": "detokenize_ids.v1", "token_ids": [-1]}', "malformed"),
            (b'{"type": "detokenize_ids.v1", "token_ids": [999999]}', "invalid"),
        ):
            answer = await answer_to(
                under_test.fleet.nats_url, question, subject="tide.v1.text.tide-tiny"
            )
            assert (answer["type"], answer["reason"]) == ("text_rejected.v1", reason)

    beside_a_running_stream(work)


def test_a_header_flood_ends_its_own_connection_only(
    under_test: Any, beside_a_running_stream: Beside
) -> None:
    async def work() -> None:
        async with httpx.AsyncClient(base_url=under_test.fleet.http_url, timeout=30) as http:
            flood = [(f"x-{number}", "y" * 100) for number in range(5000)]
            try:
                response = await http.get("/live", headers=flood)
                assert response.status_code == 431
            except (httpx.WriteError, httpx.ReadError):
                pass  # It closed while we were still sending.
            assert (await http.get("/live")).status_code == 200

    beside_a_running_stream(work)


def test_unknown_fields_and_explicit_nulls_are_accepted(
    under_test: Any, beside_a_running_stream: Beside
) -> None:
    async def work() -> None:
        names = (
            "max_completion_tokens temperature top_p n stop seed logprobs top_logprobs logit_bias "
            "user stream stream_options presence_penalty frequency_penalty tools tool_choice "
            "response_format top_k min_p repetition_penalty min_tokens stop_token_ids ignore_eos"
        )
        body = {**dict.fromkeys(names.split()), "from_tomorrow": {"x": [None]}, "max_tokens": 3}
        async with httpx.AsyncClient(base_url=under_test.fleet.http_url, timeout=30) as http:
            response = await http.post("/v1/chat/completions", content=a_body(**body))
        assert response.status_code == 200, response.text
        assert response.json()["usage"]["completion_tokens"] <= 3

    beside_a_running_stream(work)


def test_a_client_gone_mid_stream_has_its_blocks_freed_within_a_second(under_test: Any) -> None:
    async def blocks_free(reports: Any) -> int:
        report = REPORTS.decode((await asyncio.wait_for(anext(reports), 5)).payload)
        assert isinstance(report, WorkerReport)
        return report.blocks_free

    async def run() -> None:
        bus = await NatsBus.connect(under_test.fleet.nats_url, name="watcher")
        reports = await bus.subscribe(WORKER_REPORTS)
        before = await blocks_free(reports)
        body = a_body(stream=True, ignore_eos=True, max_tokens=1500, n=4, temperature=1.0)
        async with (
            httpx.AsyncClient(base_url=under_test.fleet.http_url, timeout=30) as http,
            http.stream("POST", "/v1/chat/completions", content=body) as told,
        ):
            assert told.status_code == 200
            async for _ in told.aiter_lines():
                if await blocks_free(reports) <= before - 4:
                    break
            else:
                pytest.fail("the stream ended before it held any blocks")
        async with asyncio.timeout(1.0):
            while await blocks_free(reports) < before:
                pass
        await bus.close()

    under_test.runner.run(run())


# Model folders that cannot be served: the worker says why in one line and exits with 64.


def a_copy(folder: Path, *, without: str = "") -> Path:
    source = bundled_model().folder
    for file in source.iterdir():
        if file.is_file() and file.name != without:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def worker_refusal(under_test: Any, model: Path) -> str:
    """Start a worker with this model and return its one line."""
    ended = subprocess.run(
        [sys.executable, "-m", "services.gpu_worker"],
        env={
            "PATH": "/usr/bin:/bin",
            "GPU_WORKER__NATS_URL": under_test.fleet.nats_url,
            "GPU_WORKER__MODEL": str(model),
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == EXIT_CONFIG_ERROR, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


def test_a_model_folder_that_is_missing_is_named(under_test: Any, tmp_path: Path) -> None:
    assert "no-such-model" in worker_refusal(under_test, tmp_path / "no-such-model")


def test_a_truncated_weight_file_is_named(under_test: Any, tmp_path: Path) -> None:
    folder = a_copy(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert "model.safetensors" in worker_refusal(under_test, folder)


def test_weights_that_are_not_safetensors_are_refused(under_test: Any, tmp_path: Path) -> None:
    folder = a_copy(tmp_path, without="model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"not safetensors")
    assert "safetensors" in worker_refusal(under_test, folder)


def test_an_unsupported_family_is_refused_with_the_supported_ones(
    under_test: Any, tmp_path: Path
) -> None:
    folder = a_copy(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "mamba"
    (folder / "config.json").write_text(json.dumps(config))
    refusal = worker_refusal(under_test, folder)
    assert "mamba" in refusal
    assert "llama" in refusal
    assert "qwen2" in refusal

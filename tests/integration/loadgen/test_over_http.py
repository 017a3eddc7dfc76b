"""What a server really did to a connection decides whether its answer counts."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libs.kernel.units import NS_PER_MS
from libs.runtime.clock import SystemClock
from loadgen.clients.over_http import Endpoint, HttpSender
from loadgen.clients.sampling import Sampling
from loadgen.records import Ending, Observation, Outcome
from loadgen.run import LoadRun, RunLimits
from loadgen.workload import LoadRequest

Build = Callable[..., LoadRequest]
REPOSITORY = Path(__file__).resolve().parents[3]
CLOSES = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"x-request-id: abc\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def piece(text: str, finish_reason: str | None = None) -> bytes:
    return event(
        {"id": "a", "choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]}
    )


USAGE = event({"id": "a", "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}})
WHOLE = [piece("a"), piece("b"), piece("c"), piece("", "length"), USAGE, b"data: [DONE]\n\n"]


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def refusal(status: int, code: str | None, *, content: bytes | None = None) -> bytes:
    error = {"error": {"message": "no", "type": "t", "param": None, "code": code}}
    body = json.dumps(error).encode() if content is None else content
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def a_sender(url: str, endpoint: Endpoint = Endpoint.COMPLETIONS) -> HttpSender:
    return HttpSender(
        url,
        model="m",
        endpoint=endpoint,
        sampling=Sampling(),
        streams_open_max=4,
        clock=SystemClock(),
    )


async def sent(url: str, request: LoadRequest) -> tuple[Ending, Observation]:
    seen = Observation()
    async with a_sender(url) as sender:
        return await sender.send(request, seen), seen


async def test_a_whole_answer_is_ok_and_its_tokens_are_timed(
    byte_server: Any, a_request: Build
) -> None:
    async with byte_server(CHUNKED + chunked(WHOLE) + LAST_CHUNK).serving() as server:
        ending, seen = await sent(server.url, a_request())
    assert ending == Ending(outcome=Outcome.OK, finish_reason="length")
    assert len(seen.token_at_ns) == 3
    assert (seen.prompt_tokens, seen.output_tokens, seen.request_id) == (2, 3, "abc")
    (body,) = server.bodies
    assert body["prompt"] == [20, 21]
    assert body["max_tokens"] == 3
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize(
    ("answer", "is_reset", "outcome", "reason"),
    [
        (CLOSES + b"".join(WHOLE), False, "ok", ""),
        (CLOSES + b"".join(WHOLE[:2]), False, "broken", "no_finish_reason"),
        (CLOSES + b"".join(WHOLE[:-1]), False, "broken", "no_done"),
        (CLOSES + b"".join(WHOLE[:2]), True, "broken", "connection_cut"),
        (CHUNKED + chunked(WHOLE[:2]), False, "broken", "connection_cut"),
        (CHUNKED + chunked(WHOLE), False, "broken", "connection_cut"),
        (CHUNKED + chunked(WHOLE[:2]) + LAST_CHUNK, False, "broken", "no_finish_reason"),
        (
            CHUNKED + chunked([WHOLE[0], event({"error": {"message": "no", "code": "expired"}})]),
            *(False, "failed", "expired"),
        ),
        (CLOSES.replace(b"event-stream", b"html") + WHOLE[0], False, "broken", "not_a_stream"),
        (b"", False, "failed", "unreachable"),
        (b"", True, "failed", "unreachable"),
        (b"nonsense\r\n\r\n", False, "failed", "unreachable"),
        (refusal(429, "overloaded"), False, "rejected", "overloaded"),
        (refusal(400, None), False, "rejected", "http_400"),
        (refusal(404, "model_not_found"), False, "rejected", "model_not_found"),
        (refusal(503, "no_worker"), False, "rejected", "no_worker"),
        (refusal(503, "workers_died"), False, "failed", "workers_died"),
        (refusal(504, "expired"), False, "failed", "expired"),
        (refusal(500, None, content=b"<html>"), False, "failed", "http_500"),
        (refusal(502, None, content=b"[]"), False, "failed", "http_502"),
    ],
)
async def test_an_answer_is_judged_by_what_came_over_the_wire(
    byte_server: Any, a_request: Build, answer: bytes, is_reset: bool, outcome: str, reason: str
) -> None:
    async with byte_server(answer, is_reset=is_reset).serving() as server:
        ending, _ = await sent(server.url, a_request())
    assert (ending.outcome, ending.reason) == (outcome, reason)


async def test_nobody_at_the_address_is_a_failure_of_the_request(a_request: Build) -> None:
    ending, _ = await sent("http://127.0.0.1:1", a_request())
    assert (ending.outcome, ending.reason) == (Outcome.FAILED, "unreachable")


async def test_a_stream_that_stalls_times_out_and_is_hung_up_on(
    byte_server: Any, a_request: Build
) -> None:
    stalled = byte_server(CHUNKED + chunked(WHOLE[:2]), is_stalled=True)
    limits = RunLimits(request_timeout_ns=300 * NS_PER_MS)
    async with stalled.serving() as server, a_sender(server.url) as sender:
        run = LoadRun(sender, limits=limits, clock=SystemClock())
        (record,) = (await run.open_loop([a_request()])).records
        async with asyncio.timeout(10):
            await server.client_gone.wait()
    assert (record.ending.outcome, record.ending.reason) == (Outcome.FAILED, "timeout")
    assert record.output_tokens == 2


async def test_the_first_interrupt_ends_the_sending_and_still_reports(byte_server: Any) -> None:
    async with byte_server(CHUNKED + chunked(WHOLE) + LAST_CHUNK).serving() as server:
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadgen", "run", "--http", server.url, "--rate", "100"),
            *("--requests", "100000", "--prompt-tokens", "2", "--output-tokens", "3"),
            *("--json", "-"),
            cwd=REPOSITORY,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            await server.asked.wait()
            command.send_signal(signal.SIGINT)
            printed, _ = await command.communicate()
    report = json.loads(printed)
    assert command.returncode == 130
    assert report["interrupted"]
    assert not report["ok"]
    assert report["requests"]["ok"] == report["requests"]["sent"] > 0


async def test_chat_sends_text_as_a_message_of_the_user(byte_server: Any, a_request: Build) -> None:
    async with (
        byte_server(CHUNKED + chunked(WHOLE) + LAST_CHUNK).serving() as server,
        a_sender(server.url, Endpoint.CHAT) as sender,
    ):
        await sender.send(a_request(prompt="hello"), Observation())
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "hello"}]

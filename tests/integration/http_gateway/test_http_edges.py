"""Wrong input, limits, broken connections, readiness: what no client library sends on purpose."""

import asyncio
import json

import pytest

from libs.contracts import subjects
from libs.contracts.online import FailReason
from libs.contracts.reports import REPORTS, GatewayReport
from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from services.http_gateway.config import GatewayConfig
from services.http_gateway.gateway import running_gateway
from tests.scripted_router import Script, ScriptedRouter

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GOOD = {"model": "tide-tiny", "prompt": "go"}
GOOD_CHAT = {"model": "tide-tiny", "messages": [{"role": "user", "content": "hello"}]}
SLOW = Script(texts=("a", "b") * 500, pace_ns=10 * NS_PER_MS)


def the_error(response) -> dict:
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"]
    return body["error"]


@pytest.mark.parametrize(
    ("path", "change", "parameter"),
    [
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (COMPLETIONS, {"n": 17}, "n"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ],
)
async def test_a_wrong_field_is_named_in_a_400(a_stack, path, change, parameter) -> None:
    async with a_stack() as stack:
        good = GOOD_CHAT if path == CHAT else GOOD
        response = await stack.http.post(path, json={**good, **change})
        assert response.status_code == 400, response.text
        error = the_error(response)
        assert error["param"] == parameter
        assert error["type"] == "invalid_request_error"
        assert stack.router.submissions == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"model": "\\ud800", "prompt": "go"}',
        b'{"model":"tide-tiny","prompt":' + b"[" * 100_000,
        b'{"model":"tide-tiny","prompt":"go","temperature":NaN}',
        b'{"model":"tide-tiny","prompt":"go","max_tokens":1e400}',
    ],
)
async def test_a_body_that_is_no_request_is_one_clear_400(a_stack, body) -> None:
    async with a_stack() as stack:
        response = await stack.http.post(COMPLETIONS, content=body)
        assert response.status_code == 400
        the_error(response)
        assert (await stack.http.post(COMPLETIONS, json=GOOD)).status_code == 200


async def test_the_content_type_does_not_matter(a_stack) -> None:
    async with a_stack() as stack:
        for content_type in ("text/plain", "application/x-www-form-urlencoded"):
            response = await stack.http.post(
                COMPLETIONS,
                content=json.dumps(GOOD).encode(),
                headers={"content-type": content_type},
            )
            assert response.status_code == 200


async def test_unknown_paths_and_methods_are_told_in_the_envelope(a_stack) -> None:
    async with a_stack() as stack:
        missing = await stack.http.get("/v1/nothing")
        assert missing.status_code == 404
        the_error(missing)
        wrong = await stack.http.get(CHAT)
        assert wrong.status_code == 405
        assert wrong.headers["allow"] == "POST"
        the_error(wrong)


async def test_a_body_over_the_limit_is_refused_whether_its_length_was_told_or_not(
    a_stack,
) -> None:
    async with a_stack(body_bytes_max=10_000) as stack:
        body = json.dumps({**GOOD, "prompt": "x" * 20_000}).encode()

        async def in_pieces():
            for start in range(0, len(body), 1000):
                yield body[start : start + 1000]

        for content in (body, in_pieces()):
            response = await stack.http.post(COMPLETIONS, content=content)
            assert response.status_code == 413
            assert the_error(response)["code"] == "too_large"


async def test_a_prompt_over_the_brokers_limit_is_refused_and_nothing_else_suffers(
    any_stack,
) -> None:
    async with any_stack() as stack:
        response = await stack.http.post(COMPLETIONS, json={**GOOD, "prompt": "x" * 2_000_000})
        assert response.status_code == 413
        assert the_error(response)["code"] == "too_large"
        assert (await stack.http.post(COMPLETIONS, json=GOOD)).status_code == 200


async def test_a_body_that_never_arrives_is_answered_408(a_stack) -> None:
    async with a_stack(body_wait_s=0.1) as stack:
        answer = await raw(stack, post_head(content_length=100) + b"{")
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 500 + b"\r\n", 431),
        (b"GET /live HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 300_000, 431),
        (b"GET /" + b"x" * 300_000, 431),
    ],
)
async def test_heads_beyond_the_bounds_or_beyond_http_end_the_connection(
    a_stack, head, status
) -> None:
    async with a_stack() as stack:
        answer = await raw(stack, head)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:100]
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["error"]["type"] == "invalid_request_error"
        assert (await stack.http.get("/live")).status_code == 200


async def test_a_large_body_is_not_mistaken_for_a_large_head(a_stack) -> None:
    async with a_stack(head_bytes_max=2_000) as stack:
        for _ in range(3):  # on one connection
            body = {**GOOD, "prompt": "x" * 500_000}
            assert (await stack.http.post(COMPLETIONS, json=body)).status_code == 200


@pytest.mark.parametrize("callers_id", ["mine-1", "0af7651916cd43dd.8448eb21:1"])
async def test_a_callers_request_id_comes_back_and_names_no_session(a_stack, callers_id) -> None:
    async with a_stack() as stack:
        headers = {"x-request-id": callers_id}
        first, second = [
            await stack.http.post(COMPLETIONS, json=GOOD, headers=headers) for _ in range(2)
        ]
        assert first.headers.get_list("x-request-id") == [callers_id]
        assert first.json()["id"] != second.json()["id"]
        assert len({s.request_id for s in stack.router.submissions}) == 2


@pytest.mark.parametrize("callers_id", ["tide.v1.>", "a b", "x" * 129, "é", ""])
async def test_a_callers_request_id_of_other_characters_is_replaced(a_stack, callers_id) -> None:
    async with a_stack() as stack:
        response = await stack.http.post(
            COMPLETIONS, json=GOOD, headers={"x-request-id": callers_id.encode()}
        )
        assert response.status_code == 200
        [request_id] = response.headers.get_list("x-request-id")
        assert request_id.isalnum()
        assert stack.router.submissions[0].request_id == request_id


async def test_a_complete_stream_ends_with_done_and_the_terminating_chunk(a_stack) -> None:
    async with a_stack() as stack:
        answer = await raw(stack, a_post({**GOOD, "stream": True}, is_last=True))
        assert b"text/event-stream" in answer
        assert answer.count(b"data: [DONE]\n\n") == 1
        assert answer.endswith(b"0\r\n\r\n")


async def test_a_stream_that_cannot_go_on_tells_why_and_is_cut_without_terminator(
    any_stack,
) -> None:
    failure = FailReason.WORKERS_DIED
    script = Script(texts=("a", "b"), pace_ns=20 * NS_PER_MS, failure=failure)
    async with any_stack(script) as stack:
        answer = await raw(stack, a_post({**GOOD, "stream": True}))
        assert b'"text":"b"' in answer
        assert b'"code":"workers_died"' in answer
        assert b"[DONE]" not in answer
        assert not answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_a_client_that_hangs_up_has_its_request_cancelled_within_a_second(
    any_stack, is_streaming
) -> None:
    async with any_stack(SLOW) as stack:
        reader, writer = await asyncio.open_connection(*stack.address)
        writer.write(a_post({**GOOD, "stream": is_streaming}))
        await until_submitted(stack, 1)
        if is_streaming:
            await reader.readuntil(b'"text":"a"')
        writer.close()
        request_id = stack.router.submissions[0].request_id
        await asyncio.wait_for(stack.router.cancelled(request_id), 1.0)
        gauge = await metric(stack, "tideserve_http_gateway_streams_open")
        assert gauge == 0


async def test_a_client_that_hangs_up_before_acceptance_is_cancelled_too(a_stack) -> None:
    async with a_stack(Script(submissions_ignored=1000), acceptance_wait_s=20.0) as stack:
        _, writer = await asyncio.open_connection(*stack.address)
        writer.write(a_post({**GOOD, "stream": True}))
        await until_submitted(stack, 1)
        writer.close()
        request_id = stack.router.submissions[0].request_id
        await asyncio.wait_for(stack.router.cancelled(request_id), 1.0)


async def test_the_first_byte_waits_for_the_acceptance_and_for_nothing_else(a_stack) -> None:
    async with a_stack(Script(texts=("a",), pace_ns=60 * NS_PER_S)) as stack:
        reader, writer = await asyncio.open_connection(*stack.address)
        writer.write(a_post({**GOOD_CHAT, "stream": True}, path=CHAT))
        opening = await asyncio.wait_for(reader.readuntil(b"\n\n"), 2.0)
        assert b'"role":"assistant"' in opening
        writer.close()


async def test_nobody_answering_is_a_503_after_the_configured_wait(a_stack) -> None:
    async with a_stack(Script(submissions_ignored=1000), acceptance_wait_s=0.3) as stack:
        response = await stack.http.post(COMPLETIONS, json=GOOD)
        assert response.status_code == 503
        assert the_error(response)["code"] == "unavailable"
        assert int(response.headers["retry-after"]) >= 1


async def test_readiness_needs_a_router_and_liveness_needs_nothing(a_stack) -> None:
    async with a_stack(has_router=False) as stack:
        assert (await stack.http.get("/live")).status_code == 200
        health = await stack.http.get("/health")
        assert health.status_code == 503
        assert health.json()["router_heard"] is False
        refused = await stack.http.post(COMPLETIONS, json=GOOD)
        assert refused.status_code == 503, "whether the model exists is not known yet"
        assert refused.headers["retry-after"]
    async with a_stack() as stack:
        health = await stack.http.get("/health")
        assert health.status_code == 200
        assert health.json()["models"] == ["tide-tiny"]
        stack.hub.is_reachable = False
        health = await stack.http.get("/health")
        assert health.status_code == 503
        assert health.json()["bus_connected"] is False


async def test_a_broker_that_is_away_for_a_while_costs_a_request_only_time(a_stack) -> None:
    async with a_stack(acceptance_wait_s=20.0) as stack:
        stack.hub.is_reachable = False
        asyncio.get_running_loop().call_later(0.7, setattr, stack.hub, "is_reachable", True)
        response = await stack.http.post(COMPLETIONS, json=GOOD)
        assert response.status_code == 200


async def test_metrics_count_responses_by_route_and_tokens(a_stack) -> None:
    async with a_stack(Script(texts=("a", "b", "c"))) as stack:
        await stack.http.post(COMPLETIONS, json=GOOD)
        await stack.http.get("/v1/secret/path")
        text = (await stack.http.get("/metrics")).text
        assert 'responses_total{route="/v1/completions",status="200"} 1.0' in text
        assert 'responses_total{route="unmatched",status="404"} 1.0' in text
        assert "secret" not in text
        assert await metric(stack, "tideserve_http_gateway_tokens_total") == 3
        assert await metric(stack, "tideserve_http_gateway_first_token_seconds_count") == 1


async def test_the_gateway_reports_where_it_listens(a_stack) -> None:
    async with a_stack(gateway_id="gateway-7") as stack:
        reports = await MemoryBus(stack.hub).subscribe(subjects.GATEWAY_REPORTS)
        report = REPORTS.decode((await asyncio.wait_for(anext(reports), 5)).payload)
        assert isinstance(report, GatewayReport)
        assert report.gateway_id == "gateway-7"
        assert report.http_url == stack.gateway.http_url
        assert report.process_id > 0


async def test_too_many_open_requests_are_a_429(a_stack) -> None:
    streamed = {**GOOD, "stream": True}
    async with (
        a_stack(SLOW, streams_open_max=1) as stack,
        stack.http.stream("POST", COMPLETIONS, json=streamed) as first,
    ):
        assert first.status_code == 200
        response = await stack.http.post(COMPLETIONS, json=GOOD)
        assert response.status_code == 429
        assert the_error(response)["code"] == "overloaded"
        assert response.headers["retry-after"]


async def test_stopping_lets_open_streams_finish_within_the_wait() -> None:
    received = bytearray()
    script = Script(texts=("a",) * 20, pace_ns=20 * NS_PER_MS)

    async def client_of(url: str, begun: asyncio.Event) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(a_post({**GOOD, "stream": True}))
        while part := await reader.read(1000):
            received.extend(part)
            begun.set()
        writer.close()

    begun = asyncio.Event()
    reading = await _stop_midway(script, client_of, begun, shutdown_wait_s=20)
    await reading
    assert received.endswith(b"0\r\n\r\n")
    assert received.count(b'"text":"a"') == 20


async def test_stopping_cuts_off_and_cancels_what_outlasts_the_wait() -> None:
    async def client_of(url: str, begun: asyncio.Event) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(a_post({**GOOD, "stream": True}))
        while await reader.read(1000):
            begun.set()
        writer.close()

    hub = MemoryHub()
    cancellations = await MemoryBus(hub).subscribe(subjects.CANCEL_ALL)
    begun = asyncio.Event()
    reading = await _stop_midway(SLOW, client_of, begun, shutdown_wait_s=1, hub=hub)
    await asyncio.wait_for(anext(cancellations), 2)
    await reading


async def test_a_port_that_is_taken_is_the_operators_error(a_stack) -> None:
    async with a_stack() as stack:
        _, port = stack.address
        config = GatewayConfig(port=port)
        with pytest.raises(ConfigError, match="cannot listen"):
            async with running_gateway(MemoryBus(stack.hub), config):
                pass


async def _stop_midway(
    script: Script, client_of, begun: asyncio.Event, *, shutdown_wait_s: int, hub=None
) -> asyncio.Task[None]:
    hub = hub or MemoryHub()
    router = ScriptedRouter(MemoryBus(hub), script_of=lambda _: script)
    config = GatewayConfig(port=0, report_interval_s=0.1, shutdown_wait_s=shutdown_wait_s)
    async with router.serving(), running_gateway(MemoryBus(hub), config) as gateway:
        async with asyncio.timeout(5):
            while not (gateway.view.has_router and gateway.view.models()):
                await asyncio.sleep(0.005)
        reading = asyncio.create_task(client_of(gateway.http_url, begun))
        await asyncio.wait_for(begun.wait(), 5)
    return reading


def post_head(*, path: str = COMPLETIONS, content_length: int, is_last: bool = False) -> bytes:
    last = "connection: close\r\n" if is_last else ""
    return (
        f"POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {content_length}\r\n{last}\r\n"
    ).encode()


def a_post(body: dict, *, path: str = COMPLETIONS, is_last: bool = False) -> bytes:
    content = json.dumps(body).encode()
    return post_head(path=path, content_length=len(content), is_last=is_last) + content


async def raw(stack, sent: bytes) -> bytes:
    """Send bytes and return all that comes back until the gateway closes."""
    reader, writer = await asyncio.open_connection(*stack.address)
    writer.write(sent)
    received = bytearray()
    try:
        async with asyncio.timeout(10):
            while part := await reader.read(65_536):
                received += part
    except ConnectionResetError:
        pass  # It closed while we were still sending.
    writer.close()
    return bytes(received)


async def until_submitted(stack, count: int) -> None:
    async with asyncio.timeout(5):
        while len(stack.router.submissions) < count:
            await asyncio.sleep(0.005)


async def metric(stack, name: str) -> float:
    lines = (await stack.http.get("/metrics")).text.splitlines()
    [value] = [line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")]
    return float(value)

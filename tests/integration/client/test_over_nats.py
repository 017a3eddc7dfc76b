"""The client, and a client without any of our code, over a real NATS server."""

import asyncio
import json
import uuid

import nats
import pytest

from libs.client.client import ClientOptions, TideClient
from libs.client.reader_events import ReaderOptions
from libs.contracts.wire import Encoding
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer
from tests.scripted_router import LossyLink, Script, ScriptedRouter

TEXTS = tuple(f"w{i} " for i in range(60))


async def test_streams_over_a_bad_link_are_complete(nats_server: NatsServer) -> None:
    bus = await NatsBus.connect(nats_server.url, name="router")
    link = LossyLink(lost=0.1, doubled=0.1, overtaken=0.1, seed=5)
    router = ScriptedRouter(bus, script_of=lambda _: Script(texts=TEXTS), link=link)
    reader = ReaderOptions(repeat_after_ns=200 * NS_PER_MS, repeat_after_ns_max=400 * NS_PER_MS)
    options = ClientOptions(reader=reader, encoding=Encoding.JSON)
    async with (
        router.serving(),
        await TideClient.connect(nats_server.url, options=options) as client,
    ):
        answers = await asyncio.gather(
            *(client.complete(model="tide-tiny", prompt=f"p{i}") for i in range(20))
        )
    assert [a.text for a in answers] == ["".join(TEXTS)] * 20
    await bus.close()


async def test_that_nobody_listens_is_noticed_at_once_and_retried(nats_server: NatsServer) -> None:
    never_by_silence = ReaderOptions(
        acceptance_wait_ns=5_000 * NS_PER_MS,
        accept_repeat_after_ns=60_000 * NS_PER_MS,
        unheard_repeat_after_ns=50 * NS_PER_MS,
    )
    options = ClientOptions(reader=never_by_silence)
    bus = await NatsBus.connect(nats_server.url, name="router")
    async with await TideClient.connect(nats_server.url, options=options) as client:
        stream = client.stream(model="tide-tiny", prompt="go")
        waiting = asyncio.create_task(stream.accepted())
        async with asyncio.timeout(3):
            while stream.submissions < 3:
                await asyncio.sleep(0.01)
        async with ScriptedRouter(bus, script_of=lambda _: Script(texts=TEXTS)).serving():
            await asyncio.wait_for(waiting, 3)
            assert "".join([t.text async for t in stream]) == "".join(TEXTS)
    await bus.close()


async def test_no_router_at_all_is_told_when_patience_ends(nats_server: NatsServer) -> None:
    reader = ReaderOptions(acceptance_wait_ns=300 * NS_PER_MS)
    options = ClientOptions(reader=reader)
    async with await TideClient.connect(nats_server.url, options=options) as client:
        with pytest.raises(Unavailable, match="no router listens"):
            await client.complete(model="tide-tiny", prompt="go")


async def test_a_broker_that_restarts_mid_stream_costs_no_token(nats_server: NatsServer) -> None:
    bus = await NatsBus.connect(nats_server.url, name="router")
    script = Script(texts=TEXTS, pace_ns=10 * NS_PER_MS)
    reader = ReaderOptions(repeat_after_ns=200 * NS_PER_MS)
    options = ClientOptions(reader=reader)
    async with (
        ScriptedRouter(bus, script_of=lambda _: script).serving(),
        await TideClient.connect(nats_server.url, options=options) as client,
    ):
        read = []
        async for token in client.stream(model="tide-tiny", prompt="go"):
            read.append(token.text)
            if token.index == 10:
                nats_server.stop()
                await asyncio.sleep(0.2)  # the script goes on: its tokens are lost meanwhile
                nats_server.start()
        assert read == list(TEXTS)
    await bus.close()


async def test_a_client_in_any_language_needs_nothing_but_json(nats_server: NatsServer) -> None:
    """The documented raw form: plain nats-py, no import of ours."""
    bus = await NatsBus.connect(nats_server.url, name="router")
    async with ScriptedRouter(bus, script_of=lambda _: Script(texts=TEXTS)).serving():
        connection = await nats.connect(nats_server.url)
        inbox = connection.new_inbox()
        answers = await connection.subscribe(inbox)
        submission = {
            "type": "submit_request.v1",
            "request_id": uuid.uuid4().hex,
            "prompt": "The tide",
            "max_tokens": 60,
            "sampling": {"temperature": 0},
        }
        await connection.publish(
            "tide.v1.online.tide-tiny", json.dumps(submission).encode(), reply=inbox
        )
        texts: list[str] = []
        kinds = []
        async for message in answers.messages:
            answer = json.loads(message.data)
            kinds.append(answer["type"])
            if answer["type"] == "tokens_generated.v1":
                texts += answer["texts"][len(texts) - answer["first_index"] :]
            if answer["type"] == "request_finished.v1":
                break
        assert kinds[0] == "request_accepted.v1"
        assert texts == list(TEXTS)
        await connection.close()
    await bus.close()

"""The client over an in-memory bus, in front of a scripted router."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest

from libs.client.client import ClientOptions, TideClient
from libs.client.errors import RequestFailedError, RequestRefused
from libs.client.reader_events import ReaderOptions
from libs.client.token_stream import TokenStream
from libs.contracts import subjects
from libs.contracts.online import FailReason, FinishReason, RejectReason, SubmitRequest
from libs.contracts.text import DetokenizeIds, IdsDetokenized, TextTokenized, TokenizeText
from libs.contracts.wire import Encoding
from libs.kernel.errors import InvariantViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from tests.scripted_router import LossyLink, Script, ScriptedRouter

TEXTS = tuple(f"w{i} " for i in range(40))
QUICK = ReaderOptions(
    acceptance_wait_ns=2 * NS_PER_S,
    accept_repeat_after_ns=30 * NS_PER_MS,
    unheard_repeat_after_ns=20 * NS_PER_MS,
    repeat_after_ns=30 * NS_PER_MS,
    repeat_after_ns_max=60 * NS_PER_MS,
    gap_repeat_after_ns=10 * NS_PER_MS,
    silence_max_ns=1 * NS_PER_S,
)


@asynccontextmanager
async def a_client(
    script: Script | Callable[[SubmitRequest], Script] | None = None,
    *,
    link: LossyLink | None = None,
    reader: ReaderOptions = QUICK,
    encoding: Encoding = Encoding.MSGPACK,
    streams_open_max: int = 100,
    hub: MemoryHub | None = None,
) -> AsyncIterator[tuple[TideClient, ScriptedRouter]]:
    hub = hub or MemoryHub()
    script_of = script if callable(script) else lambda _: script or Script(texts=TEXTS)
    options = ClientOptions(reader=reader, encoding=encoding, streams_open_max=streams_open_max)
    router = ScriptedRouter(MemoryBus(hub), script_of=script_of, link=link)
    async with router.serving(), TideClient(MemoryBus(hub), options=options) as client:
        yield client, router


async def within(awaitable: object, timeout_s: float = 5.0) -> None:
    await asyncio.wait_for(awaitable, timeout_s)  # type: ignore[arg-type]


async def read_into(read: list[str], stream: TokenStream) -> None:
    async for token in stream:
        read.append(token.text)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_stream_gives_each_token_with_its_text_and_the_usage(encoding: Encoding) -> None:
    async def scenario() -> None:
        async with a_client(encoding=encoding) as (client, router):
            stream = client.stream(model="Tide-Tiny", prompt="go", max_tokens=40, temperature=0)
            tokens = [token async for token in stream]
            assert [t.text for t in tokens] == list(TEXTS)
            assert [t.index for t in tokens] == list(range(40))
            assert [t.token_id for t in tokens] == list(range(100, 140))
            assert stream.finish_reason is FinishReason.STOP
            assert stream.usage is not None
            assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (7, 40)
            assert router.submissions[0].max_tokens == 40
            assert router.submissions[0].sampling.temperature == 0
            assert client.streams_open == 0

    asyncio.run(scenario())


def test_complete_gives_the_whole_answer() -> None:
    async def scenario() -> None:
        async with a_client() as (client, _):
            answer = await client.complete(
                model="tide-tiny", messages=[{"role": "user", "content": "hi"}]
            )
            assert answer.text == "".join(TEXTS)
            assert answer.token_ids == tuple(range(100, 140))
            assert answer.finish_reason is FinishReason.STOP

    asyncio.run(scenario())


def test_log_probabilities_come_with_their_tokens_over_a_bad_link_too() -> None:
    async def scenario() -> None:
        link = LossyLink(lost=0.2, doubled=0.2, overtaken=0.2, seed=3)
        async with a_client(link=link) as (client, _):
            answer = await client.complete(model="tide-tiny", prompt="go", logprobs=2)
            assert [item.chosen.token_id for item in answer.logprobs] == list(range(100, 140))
            assert {len(item.best) for item in answer.logprobs} == {2}
            plain = await client.complete(model="tide-tiny", prompt="go")
            assert plain.logprobs == ()

    asyncio.run(scenario())


@pytest.mark.parametrize("encoding", list(Encoding))
def test_questions_about_text_are_answered_or_refused(encoding: Encoding) -> None:
    async def scenario() -> None:
        async with a_client(encoding=encoding) as (client, _):
            answer = await client.ask_about_text("tide-tiny", TokenizeText(prompt="ab"))
            assert answer == TextTokenized(token_ids=(97, 98))
            text = await client.ask_about_text("tide-tiny", DetokenizeIds(token_ids=(98, 97)))
            assert text == IdsDetokenized(text="ba")
            with pytest.raises(Unavailable):
                await client.ask_about_text("another-model", TokenizeText(prompt="ab"))

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(5))
def test_many_streams_at_once_over_a_bad_link_are_each_complete(seed: int) -> None:
    async def scenario() -> None:
        link = LossyLink(lost=0.2, doubled=0.2, overtaken=0.2, seed=seed)
        async with a_client(link=link) as (client, _):
            answers = await asyncio.gather(
                *(client.complete(model="tide-tiny", prompt=f"p{i}") for i in range(20))
            )
            assert [a.text for a in answers] == ["".join(TEXTS)] * 20
            assert client.streams_open == 0

    asyncio.run(scenario())


def test_a_consumer_slower_than_its_buffer_still_reads_every_token() -> None:
    async def scenario() -> None:
        reader = ReaderOptions(tokens_buffered_max=4)
        async with a_client(reader=reader) as (client, router):
            stream = client.stream(model="tide-tiny", prompt="go")
            read = []
            async for token in stream:
                read.append(token.text)
                await asyncio.sleep(0)
            assert read == list(TEXTS)
            assert len(router.submissions) > 1, "the rest must have been asked for"

    asyncio.run(scenario())


def test_leaving_the_block_early_cancels_the_request() -> None:
    async def scenario() -> None:
        slow = Script(texts=TEXTS, pace_ns=10 * NS_PER_MS)
        async with a_client(slow) as (client, router):
            async with client.stream(model="tide-tiny", prompt="go") as stream:
                async for _ in stream:
                    break
            await within(router.cancelled(stream.request_id))
            assert client.streams_open == 0

    asyncio.run(scenario())


def test_a_stream_that_is_simply_forgotten_is_cancelled() -> None:
    async def scenario() -> None:
        slow = Script(texts=TEXTS, pace_ns=10 * NS_PER_MS)
        async with a_client(slow) as (client, router):
            async for _ in client.stream(model="tide-tiny", prompt="go", request_id="forgotten"):
                break
            gc.collect()
            await within(router.cancelled("forgotten"))

    asyncio.run(scenario())


def test_cancelling_the_reading_task_cancels_the_request() -> None:
    async def scenario() -> None:
        slow = Script(texts=TEXTS, pace_ns=10 * NS_PER_MS)
        async with a_client(slow) as (client, router):
            started = asyncio.Event()

            async def read() -> None:
                async with client.stream(
                    model="tide-tiny", prompt="go", request_id="torn"
                ) as stream:
                    async for _ in stream:
                        started.set()

            task = asyncio.create_task(read())
            await within(started.wait())
            task.cancel()
            await within(router.cancelled("torn"))

    asyncio.run(scenario())


def test_a_refusal_tells_reason_and_parameter() -> None:
    async def scenario() -> None:
        script = Script(rejection=RejectReason.CONTEXT_LENGTH_EXCEEDED)
        async with a_client(script) as (client, _):
            with pytest.raises(RequestRefused, match="scripted") as refused:
                await client.complete(model="tide-tiny", prompt="go")
            assert refused.value.reason is RejectReason.CONTEXT_LENGTH_EXCEEDED
            assert refused.value.retry_after_ns is None

    asyncio.run(scenario())


def test_an_overloaded_router_is_tried_again_until_it_accepts() -> None:
    async def scenario() -> None:
        script = Script(
            texts=TEXTS, rejection=RejectReason.OVERLOADED, rejections=3, retry_after_ms=10
        )
        async with a_client(script) as (client, router):
            answer = await client.complete(model="tide-tiny", prompt="go")
            assert answer.text == "".join(TEXTS)
            assert len(router.submissions) == 4

    asyncio.run(scenario())


def test_a_silent_router_is_asked_again_with_the_same_request_id() -> None:
    async def scenario() -> None:
        script = Script(texts=TEXTS, submissions_ignored=2)
        async with a_client(script) as (client, router):
            await client.complete(model="tide-tiny", prompt="go", request_id="mine")
            assert [s.request_id for s in router.submissions] == ["mine"] * 3

    asyncio.run(scenario())


def test_a_failure_after_tokens_is_raised_after_those_tokens() -> None:
    async def scenario() -> None:
        script = Script(texts=TEXTS[:3], failure=FailReason.WORKERS_DIED)
        async with a_client(script) as (client, _):
            read: list[str] = []
            stream = client.stream(model="tide-tiny", prompt="go")
            with pytest.raises(RequestFailedError) as failed:
                await read_into(read, stream)
            assert read == list(TEXTS[:3])
            assert failed.value.reason is FailReason.WORKERS_DIED
            assert stream.finish_reason is None

    asyncio.run(scenario())


def test_no_router_at_all_is_unavailable_in_the_end() -> None:
    async def scenario() -> None:
        reader = ReaderOptions(
            acceptance_wait_ns=100 * NS_PER_MS, accept_repeat_after_ns=20 * NS_PER_MS
        )
        async with TideClient(
            MemoryBus(MemoryHub()), options=ClientOptions(reader=reader)
        ) as client:
            with pytest.raises(Unavailable):
                await client.complete(model="tide-tiny", prompt="go")
            assert client.streams_open == 0

    asyncio.run(scenario())


def test_a_broker_that_goes_away_mid_stream_costs_no_token() -> None:
    async def scenario() -> None:
        hub = MemoryHub()
        script = Script(texts=TEXTS, pace_ns=2 * NS_PER_MS)
        async with a_client(script, hub=hub) as (client, _):
            read = []
            async for token in client.stream(model="tide-tiny", prompt="go"):
                read.append(token.text)
                if token.index == 5:
                    hub.is_reachable = False
                    loop = asyncio.get_running_loop()
                    loop.call_later(0.2, setattr, hub, "is_reachable", True)
            assert read == list(TEXTS)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({}, "exactly one"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "exactly one"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "a", "temperature": -1.0}, "temperature"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "request_id": "a b"}, "request_id"),
        ({"messages": [{"role": "user"}]}, "content"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    arguments: dict[str, object], path: str
) -> None:
    async def scenario() -> None:
        async with a_client() as (client, router):
            with pytest.raises(RequestRefused, match=path) as refused:
                client.stream(model="tide-tiny", **arguments)  # type: ignore[arg-type]
            assert refused.value.reason is RejectReason.INVALID
            assert router.submissions == []

    asyncio.run(scenario())


def test_a_prompt_over_the_brokers_limit_is_refused_as_too_large() -> None:
    async def scenario() -> None:
        async with a_client() as (client, _):
            with pytest.raises(RequestRefused) as refused:
                await client.complete(model="tide-tiny", prompt="x" * 2_000_000)
            assert refused.value.reason is RejectReason.TOO_LARGE

    asyncio.run(scenario())


def test_one_request_id_is_open_once_and_the_table_of_streams_is_bounded() -> None:
    async def scenario() -> None:
        slow = Script(texts=TEXTS, pace_ns=NS_PER_S)
        async with a_client(slow, streams_open_max=1) as (client, _):
            first = client.stream(model="tide-tiny", prompt="go", request_id="one")
            await first.accepted()
            with pytest.raises(RequestRefused, match="open in this client"):
                await client.complete(model="tide-tiny", prompt="go", request_id="one")
            with pytest.raises(RequestRefused) as refused:
                await client.complete(model="tide-tiny", prompt="go")
            assert refused.value.reason is RejectReason.OVERLOADED
            await first.aclose()

    asyncio.run(scenario())


def test_answers_that_cannot_be_read_or_are_nobodys_are_counted() -> None:
    async def scenario() -> None:
        hub = MemoryHub()
        async with a_client(Script(texts=TEXTS, pace_ns=NS_PER_MS), hub=hub) as (client, _):
            stranger = MemoryBus(hub)
            sent = await stranger.subscribe(subjects.ONLINE_ALL)
            stream = client.stream(model="tide-tiny", prompt="go")
            await stream.accepted()
            submission = await anext(sent)
            assert submission.reply_to is not None
            await stranger.publish(submission.reply_to, b"\xff\xff")
            await stranger.publish(submission.reply_to + "x", b"{}")
            assert [t.text async for t in stream] == list(TEXTS)
            assert client.answers_ignored == 2

    asyncio.run(scenario())


def test_closing_the_client_cancels_what_is_open() -> None:
    async def scenario() -> None:
        slow = Script(texts=TEXTS, pace_ns=NS_PER_S)
        async with a_client(slow) as (client, router):
            stream = client.stream(model="tide-tiny", prompt="go")
            await stream.accepted()
            await client.close()
            await within(router.cancelled(stream.request_id))
            with pytest.raises(Unavailable, match="closed"):
                await anext(stream)

    asyncio.run(scenario())


def test_a_bug_in_the_reader_ends_the_stream_and_is_told_to_the_process() -> None:
    async def scenario() -> None:
        slow = Script(texts=TEXTS, pace_ns=50 * NS_PER_MS)
        async with a_client(slow) as (client, _):
            stream = client.stream(model="tide-tiny", prompt="go")
            await stream.accepted()
            stream._conversation.reader.handle = violating  # type: ignore[method-assign]
            with pytest.raises(InvariantViolation, match="planted"):
                await within(client.until_failed())
            with pytest.raises(Unavailable, match="at fault"):
                await within(anext(stream))

    def violating(event: object, *, now_ns: int) -> NoReturn:
        raise InvariantViolation("planted")

    asyncio.run(scenario())

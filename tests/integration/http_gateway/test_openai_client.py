"""The official client against the gateway: what it gets, and what it raises."""

import asyncio

import openai
import pytest

from libs.contracts.online import FailReason, FinishReason, RejectReason
from libs.kernel.units import NS_PER_MS
from tests.scripted_router import LossyLink, Script

HELLO = [{"role": "user", "content": "hello"}]
TEXTS = ("The", " tide", "", " comes", " in", " é", "🌊")
WHOLE = "".join(TEXTS)
SCRIPT = Script(texts=TEXTS)


async def test_a_chat_completion_has_all_of_openais_fields(any_stack) -> None:
    async with any_stack(SCRIPT) as stack:
        answer = await stack.openai.chat.completions.create(model="tide-tiny", messages=HELLO)
        assert answer.object == "chat.completion"
        assert answer.id.startswith("chatcmpl-")
        assert answer.model == "tide-tiny"
        assert answer.created > 1_600_000_000
        [choice] = answer.choices
        assert (choice.index, choice.finish_reason) == (0, "stop")
        assert (choice.message.role, choice.message.content) == ("assistant", WHOLE)
        assert answer.usage.prompt_tokens == 7
        assert answer.usage.completion_tokens == 7
        assert answer.usage.total_tokens == 14
        assert answer._request_id == answer.id.removeprefix("chatcmpl-")
        [submission] = stack.router.submissions
        assert submission.messages[0].content == "hello"
        assert submission.max_tokens is None


async def test_a_chat_stream_has_role_text_and_end_each_where_it_belongs(any_stack) -> None:
    async with any_stack(SCRIPT) as stack:
        stream = await stack.openai.chat.completions.create(
            model="tide-tiny", messages=HELLO, stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert len({chunk.id for chunk in chunks}) == 1
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        roles = [chunk.choices[0].delta.role for chunk in chunks]
        assert roles == ["assistant"] + [None] * (len(chunks) - 1)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == WHOLE
        ends = [chunk.choices[0].finish_reason for chunk in chunks]
        assert ends == [None] * (len(chunks) - 1) + ["stop"]
        assert all(chunk.usage is None for chunk in chunks)


async def test_the_usage_chunk_comes_last_and_only_when_asked_for(a_stack) -> None:
    async with a_stack(SCRIPT) as stack:
        stream = await stack.openai.chat.completions.create(
            model="tide-tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices == []
        assert chunks[-1].usage.total_tokens == 14
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert all("usage" in chunk.model_fields_set for chunk in chunks)


async def test_continuous_usage_counts_up_in_every_chunk(a_stack) -> None:
    async with a_stack(Script(texts=TEXTS, pace_ns=5 * NS_PER_MS)) as stack:
        options = {"include_usage": True, "continuous_usage_stats": True}
        stream = await stack.openai.completions.create(
            model="tide-tiny", prompt="go", stream=True, stream_options=options
        )
        counts = [chunk.usage.completion_tokens async for chunk in stream]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (1, 7)


async def test_a_text_completion_whole_and_streamed(any_stack) -> None:
    async with any_stack(SCRIPT) as stack:
        answer = await stack.openai.completions.create(model="tide-tiny", prompt="go")
        assert answer.object == "text_completion"
        assert answer.id.startswith("cmpl-")
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (WHOLE, "stop")
        assert answer.usage.completion_tokens == 7
        assert stack.router.submissions[0].prompt == "go"
        assert stack.router.submissions[0].max_tokens == 16, "OpenAI's default for this endpoint"
        stream = await stack.openai.completions.create(model="tide-tiny", prompt="go", stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks) == WHOLE
        assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [
            "stop"
        ]


@pytest.mark.parametrize(
    ("prompt", "text", "token_ids"),
    [
        ("go", "go", None),
        (["go"], "go", None),
        ([5, 6, 7], None, (5, 6, 7)),
        ([[5, 6, 7]], None, (5, 6, 7)),
    ],
)
async def test_every_form_of_a_single_prompt_is_understood(
    a_stack, prompt, text, token_ids
) -> None:
    async with a_stack() as stack:
        await stack.openai.completions.create(model="tide-tiny", prompt=prompt)
        [submission] = stack.router.submissions
        assert submission.prompt == text
        assert submission.prompt_token_ids == token_ids


async def test_every_parameter_that_is_served_reaches_the_router(a_stack) -> None:
    async with a_stack() as stack:
        await stack.openai.chat.completions.create(
            model="tide-tiny",
            messages=HELLO,
            max_completion_tokens=33,
            temperature=0.25,
            top_p=0.5,
            seed=-3,
            stop=["a", "b"],
            extra_body={"top_k": 40, "ignore_eos": True, "priority": 5, "min_tokens": 33},
        )
        [submission] = stack.router.submissions
        assert submission.max_tokens == 33
        assert submission.sampling.temperature == 0.25
        assert submission.sampling.top_p == 0.5
        assert submission.sampling.top_k == 40
        assert submission.sampling.seed == -3
        assert submission.stop == ("a", "b")
        assert submission.ignore_eos
        assert submission.priority == 5
        assert submission.expires_after_ms == 3_600_000


async def test_nulls_mean_absent_and_unknown_fields_are_accepted(a_stack) -> None:
    async with a_stack() as stack:
        names = (
            "max_tokens temperature top_p n stop seed logprobs logit_bias user stream echo "
            "best_of suffix presence_penalty frequency_penalty stream_options top_k priority"
        )
        body = {"model": "tide-tiny", "prompt": "go", "from_tomorrow": {"x": [1]}, "user": "me"}
        response = await stack.http.post(
            "/v1/completions", json={**dict.fromkeys(names.split()), **body}
        )
        assert response.status_code == 200, response.text
        assert stack.router.submissions[0].sampling.temperature == 1.0


async def test_values_that_change_nothing_are_accepted(a_stack) -> None:
    async with a_stack() as stack:
        neutral = {
            "n": 1,
            "logprobs": False,
            "top_logprobs": 0,
            "tools": [],
            "tool_choice": "none",
            "response_format": {"type": "text"},
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "logit_bias": {},
            "top_k": -1,
            "min_tokens": 0,
        }
        response = await stack.http.post(
            "/v1/chat/completions",
            json={"model": "tide-tiny", "messages": HELLO, **neutral},
        )
        assert response.status_code == 200, response.text


async def test_content_in_parts_is_joined_and_an_absent_content_is_empty(a_stack) -> None:
    async with a_stack() as stack:
        parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
        await stack.openai.chat.completions.create(
            model="tide-tiny",
            messages=[
                {"role": "user", "content": parts},
                {"role": "assistant", "content": None},
                {"role": "narrator", "content": "custom roles are the template's business"},
            ],
        )
        contents = [m.content for m in stack.router.submissions[0].messages]
        assert contents[:2] == ["hello", ""]


async def test_the_length_limit_is_told_as_the_finish_reason(a_stack) -> None:
    async with a_stack(Script(finish_reason=FinishReason.LENGTH)) as stack:
        answer = await stack.openai.completions.create(model="tide-tiny", prompt="go", max_tokens=5)
        assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("reason", "retry_after_ms", "status", "error"),
    [
        (RejectReason.INVALID, None, 400, openai.BadRequestError),
        (RejectReason.MALFORMED, None, 400, openai.BadRequestError),
        (RejectReason.CONTEXT_LENGTH_EXCEEDED, None, 400, openai.BadRequestError),
        (RejectReason.TOO_LARGE, None, 413, openai.APIStatusError),
        (RejectReason.MODEL_NOT_FOUND, None, 404, openai.NotFoundError),
        (RejectReason.OVERLOADED, 2500, 429, openai.RateLimitError),
        (RejectReason.NO_WORKER, 2500, 503, openai.InternalServerError),
        (RejectReason.RECOVERING, 2500, 503, openai.InternalServerError),
        (RejectReason.UNAVAILABLE, 2500, 503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("is_streaming", [False, True])
async def test_a_rejection_becomes_a_status_before_anything_is_sent(
    a_stack, reason, retry_after_ms, status, error, is_streaming
) -> None:
    async with a_stack(Script(rejection=reason, retry_after_ms=retry_after_ms)) as stack:
        with pytest.raises(error) as raised:
            await stack.openai.chat.completions.create(
                model="tide-tiny", messages=HELLO, stream=is_streaming
            )
        assert raised.value.status_code == status
        assert raised.value.code == reason
        assert raised.value.message.startswith("Error code")
        assert f"scripted: {reason}" in str(raised.value)
        if status in (429, 503):
            assert raised.value.response.headers["retry-after"] == "3"
            assert raised.value.response.headers["retry-after-ms"] == "2500"


async def test_a_prompt_over_the_context_names_the_field_of_the_endpoint(a_stack) -> None:
    async with a_stack(Script(rejection=RejectReason.CONTEXT_LENGTH_EXCEEDED)) as stack:
        with pytest.raises(openai.BadRequestError) as raised:
            await stack.openai.chat.completions.create(model="tide-tiny", messages=HELLO)
        assert raised.value.param == "messages"
        with pytest.raises(openai.BadRequestError) as raised:
            await stack.openai.completions.create(model="tide-tiny", prompt="go")
        assert raised.value.param == "prompt"


async def test_a_shortage_that_passes_is_waited_for(a_stack) -> None:
    script = Script(rejection=RejectReason.RECOVERING, retry_after_ms=20, rejections=3)
    async with a_stack(script) as stack:
        answer = await stack.openai.completions.create(model="tide-tiny", prompt="go")
        assert answer.choices[0].finish_reason == "stop"
        assert len(stack.router.submissions) == 4


async def test_the_clients_own_retry_gets_through_an_overload(a_stack) -> None:
    seen = []

    def overloaded_once(submission):
        seen.append(submission.request_id)
        if len(seen) > 1:
            return Script()
        return Script(rejection=RejectReason.OVERLOADED, retry_after_ms=50)

    async with a_stack(overloaded_once) as stack:
        client = stack.openai.with_options(max_retries=2)
        await client.completions.create(model="tide-tiny", prompt="go")
        assert len(set(seen)) == 2, "a retry of HTTP is a new request"


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (FailReason.WORKERS_DIED, 503),
        (FailReason.EXPIRED, 504),
        (FailReason.ENGINE_ERROR, 500),
        (FailReason.REFUSED, 500),
        (FailReason.CANCELLED, 500),
    ],
)
async def test_a_failure_before_the_first_byte_is_a_server_error(a_stack, reason, status) -> None:
    async with a_stack(Script(failure=reason)) as stack:
        with pytest.raises(openai.InternalServerError) as raised:
            await stack.openai.completions.create(model="tide-tiny", prompt="go")
        assert raised.value.status_code == status
        assert raised.value.code == reason


async def test_a_broken_stream_raises_in_the_client_after_the_tokens_it_got(any_stack) -> None:
    script = Script(texts=TEXTS, pace_ns=5 * NS_PER_MS, failure=FailReason.WORKERS_DIED)
    async with any_stack(script) as stack:
        stream = await stack.openai.completions.create(model="tide-tiny", prompt="go", stream=True)
        texts = []

        async def read() -> None:
            async for chunk in stream:
                texts.append(chunk.choices[0].text)
                assert chunk.choices[0].finish_reason is None

        with pytest.raises(openai.APIError, match="workers_died"):
            await read()
        assert "".join(texts) == WHOLE


async def test_an_unknown_model_is_not_found_and_names_with_dots_and_slashes_are(a_stack) -> None:
    async with a_stack() as stack:
        with pytest.raises(openai.NotFoundError) as raised:
            await stack.openai.completions.create(model="gpt-5", prompt="go")
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
        answer = await stack.openai.completions.create(model="Tide.Tiny", prompt="go")
        assert answer.model == "Tide.Tiny"
        models = await stack.openai.models.list()
        assert [m.id for m in models.data] == ["tide-tiny"]
        assert models.data[0].object == "model"
        assert (await stack.openai.models.retrieve("tide/tiny")).id == "tide/tiny"
        with pytest.raises(openai.NotFoundError):
            await stack.openai.models.retrieve("meta/llama")


@pytest.mark.parametrize("seed", range(1))
async def test_many_streams_over_a_bad_link_are_complete(any_stack, seed) -> None:
    link = LossyLink(lost=0.15, doubled=0.15, overtaken=0.15, seed=seed)
    texts = tuple(f"{i} " for i in range(30))
    async with any_stack(Script(texts=texts), link=link, acceptance_wait_s=20.0) as stack:

        async def one() -> str:
            stream = await stack.openai.chat.completions.create(
                model="tide-tiny", messages=HELLO, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*(one() for _ in range(10)))
        assert answers == ["".join(texts)] * 10

"""The official client against the gateway: several answers, log probabilities, echo, token ids."""

import math

import openai
import pytest

from libs.contracts.online import FailReason, RejectReason, SubmitRequest
from libs.kernel.units import NS_PER_MS
from tests.scripted_router import Script

HELLO = [{"role": "user", "content": "hello"}]
TEXTS = ("The", " tide", "", " é", "🌊")
WHOLE = "".join(TEXTS)
SCRIPT = Script(texts=TEXTS)
PACED = Script(texts=TEXTS, pace_ns=3 * NS_PER_MS)
HALF = math.log(0.5)


async def test_several_answers_are_choices_of_one_object_and_the_prompt_counts_once(
    any_stack,
) -> None:
    async with any_stack(SCRIPT) as stack:
        answer = await stack.openai.chat.completions.create(
            model="tide-tiny", messages=HELLO, n=3, seed=5
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert {choice.message.content for choice in answer.choices} == {WHOLE}
        assert answer.usage.prompt_tokens == 7
        assert answer.usage.completion_tokens == 15
        submissions = stack.router.submissions
        assert len({s.request_id for s in submissions}) == 3
        seeds = {s.sampling.seed for s in submissions}
        assert 5 in seeds
        assert len(seeds) == 3


async def test_several_streamed_answers_share_an_id_and_each_has_role_text_and_one_end(
    any_stack,
) -> None:
    async with any_stack(PACED) as stack:
        stream = await stack.openai.chat.completions.create(
            model="tide-tiny",
            messages=HELLO,
            n=4,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert len({chunk.id for chunk in chunks}) == 1
        assert chunks[-1].choices == []
        assert chunks[-1].usage.prompt_tokens == 7
        assert chunks[-1].usage.completion_tokens == 20
        for index in range(4):
            own = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == index]
            assert [c.delta.role for c in own] == ["assistant"] + [None] * (len(own) - 1)
            assert "".join(c.delta.content or "" for c in own) == WHOLE
            assert [c.finish_reason for c in own] == [None] * (len(own) - 1) + ["stop"]


async def test_a_list_of_prompts_times_n_is_answered_in_order(a_stack) -> None:
    def by_prompt(submission):
        return Script(texts=(f"<{submission.prompt}>",), prompt_tokens=len(submission.prompt))

    async with a_stack(by_prompt) as stack:
        answer = await stack.openai.completions.create(
            model="tide-tiny", prompt=["a", "bcd"], n=2, echo=True
        )
        assert [c.text for c in answer.choices] == ["a<a>", "a<a>", "bcd<bcd>", "bcd<bcd>"]
        assert [c.index for c in answer.choices] == [0, 1, 2, 3]
        assert answer.usage.prompt_tokens == 1 + 3


async def test_if_one_of_several_answers_fails_the_others_are_cancelled(a_stack) -> None:
    def first_fails(submission):
        if submission.request_id.endswith("-0"):
            return Script(texts=("a",), failure=FailReason.WORKERS_DIED)
        return Script(texts=("a",) * 1000, pace_ns=20 * NS_PER_MS)

    async with a_stack(first_fails) as stack:
        with pytest.raises(openai.InternalServerError):
            await stack.openai.completions.create(model="tide-tiny", prompt="go", n=3)
        for submission in stack.router.submissions:
            if not submission.request_id.endswith("-0"):
                await stack.router.cancelled(submission.request_id)
        stream = await stack.openai.completions.create(
            model="tide-tiny", prompt="go", n=3, stream=True
        )
        with pytest.raises(openai.APIError, match="workers_died"):
            [chunk async for chunk in stream]


async def test_if_one_of_several_answers_is_refused_so_is_the_request(a_stack) -> None:
    def last_refused(submission):
        is_last = submission.request_id.endswith("-2")
        return Script(rejection=RejectReason.OVERLOADED if is_last else None, retry_after_ms=9)

    async with a_stack(last_refused) as stack:
        for is_streaming in (False, True):
            with pytest.raises(openai.RateLimitError):
                await stack.openai.completions.create(
                    model="tide-tiny", prompt="go", n=3, stream=is_streaming
                )


async def test_chat_log_probabilities_whole_and_streamed_are_the_same(any_stack) -> None:
    async with any_stack(PACED) as stack:
        fields = {"model": "tide-tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 2}
        answer = await stack.openai.chat.completions.create(**fields)
        content = answer.choices[0].logprobs.content
        assert [entry.token for entry in content] == list(TEXTS)
        assert {entry.logprob for entry in content} == {HALF}
        assert [len(entry.top_logprobs) for entry in content] == [2] * 5
        assert content[0].top_logprobs[1].token == "The~"
        assert bytes(content[4].bytes).decode() == "🌊"
        stream = await stack.openai.chat.completions.create(**fields, stream=True)
        streamed = []
        async for chunk in stream:
            if chunk.choices[0].logprobs is not None:
                streamed += chunk.choices[0].logprobs.content
        assert streamed == content


async def test_chat_log_probabilities_without_the_best_have_none(a_stack) -> None:
    async with a_stack(SCRIPT) as stack:
        answer = await stack.openai.chat.completions.create(
            model="tide-tiny", messages=HELLO, logprobs=True
        )
        assert [e.top_logprobs for e in answer.choices[0].logprobs.content] == [[]] * 5


async def test_completion_log_probabilities_have_offsets_into_the_text(a_stack) -> None:
    async with a_stack(PACED) as stack:
        answer = await stack.openai.completions.create(model="tide-tiny", prompt="go", logprobs=1)
        scored = answer.choices[0].logprobs
        assert scored.tokens == list(TEXTS)
        assert scored.token_logprobs == [HALF] * 5
        assert scored.text_offset == [0, 3, 8, 8, 10]
        assert [WHOLE[at:].startswith(t) for at, t in zip(scored.text_offset, TEXTS, strict=True)]
        assert scored.top_logprobs[0] == {"The": HALF}
        stream = await stack.openai.completions.create(
            model="tide-tiny", prompt="go", logprobs=1, stream=True
        )
        offsets = []
        async for chunk in stream:
            if chunk.choices[0].logprobs is not None:
                offsets += chunk.choices[0].logprobs.text_offset
        assert offsets == scored.text_offset


async def test_a_token_that_is_part_of_a_character_has_no_bytes(a_stack) -> None:
    async with a_stack(Script(texts=("\ufffd", "a"))) as stack:
        answer = await stack.openai.chat.completions.create(
            model="tide-tiny", messages=HELLO, logprobs=True
        )
        assert [e.bytes for e in answer.choices[0].logprobs.content] == [None, [97]]


@pytest.mark.parametrize("prompt", ["go", [ord("g"), ord("o")], ["go"], [[ord("g"), ord("o")]]])
async def test_echo_repeats_text_and_token_ids_as_text(any_stack, prompt) -> None:
    async with any_stack(SCRIPT) as stack:
        answer = await stack.openai.completions.create(model="tide-tiny", prompt=prompt, echo=True)
        assert answer.choices[0].text == "go" + WHOLE
        stream = await stack.openai.completions.create(
            model="tide-tiny", prompt=prompt, echo=True, stream=True
        )
        texts = [chunk.choices[0].text async for chunk in stream]
        assert texts[0] == "go"
        assert "".join(texts) == "go" + WHOLE


async def test_token_ids_of_prompt_and_answer_are_shown_where_asked_for(any_stack) -> None:
    async with any_stack(PACED) as stack:
        wanted = {"return_token_ids": True}
        answer = await stack.openai.chat.completions.create(
            model="tide-tiny", messages=HELLO, extra_body=wanted
        )
        assert answer.prompt_token_ids == [ord(c) for c in "hello"]
        assert answer.choices[0].token_ids == [100, 101, 102, 103, 104]
        assert stack.router.submissions[-1].prompt_token_ids == tuple(map(ord, "hello"))
        text = await stack.openai.completions.create(
            model="tide-tiny", prompt="go", extra_body=wanted
        )
        assert text.choices[0].prompt_token_ids == [ord(c) for c in "go"]
        stream = await stack.openai.completions.create(
            model="tide-tiny", prompt="go", extra_body=wanted, stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].prompt_token_ids == [ord(c) for c in "go"]
        ids = [i for c in chunks for i in getattr(c.choices[0], "token_ids", ())]
        assert ids == [100, 101, 102, 103, 104]


async def test_tools_reach_the_router(a_stack) -> None:
    tool = {"type": "function", "function": {"name": "tide", "parameters": {"default": None}}}
    async with a_stack() as stack:
        await stack.openai.chat.completions.create(
            model="tide-tiny", messages=HELLO, tools=[tool], tool_choice="auto"
        )
        assert stack.router.submissions[0].tools == (tool,)


async def test_text_becomes_tokens_and_tokens_text(any_stack) -> None:
    async with any_stack() as stack:
        body = {"model": "tide-tiny", "prompt": "go", "return_token_strs": True}
        response = await stack.http.post("/tokenize", json=body)
        assert response.status_code == 200, response.text
        assert response.json() == {
            "count": 2,
            "max_model_len": 2048,
            "tokens": [103, 111],
            "token_strs": ["g", "o"],
        }
        response = await stack.http.post("/tokenize", json={"messages": HELLO})
        assert response.json()["count"] == 5, "the only model needs no name"
        assert response.json()["token_strs"] is None
        response = await stack.http.post("/detokenize", json={"tokens": [103, 111]})
        assert response.json() == {"prompt": "go"}


@pytest.mark.parametrize(
    ("path", "body", "status", "parameter"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "model": "gpt-9"}, 404, "model"),
        ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, None),
        ("/tokenize", {"messages": [HELLO[0]] * 4097}, 400, "messages"),
        ("/detokenize", {"tokens": ["x"]}, 400, "tokens[0]"),
    ],
)
async def test_a_wrong_question_about_text_is_one_clear_error(
    a_stack, path, body, status, parameter
) -> None:
    async with a_stack() as stack:
        response = await stack.http.post(path, json=body)
        assert response.status_code == status, response.text
        error = response.json()["error"]
        if parameter is not None:
            assert error["param"] == parameter


async def test_echo_with_log_probabilities_scores_the_prompt_first(a_stack) -> None:
    async with a_stack(PACED) as stack:
        asked = {"model": "tide-tiny", "prompt": "go", "logprobs": 1, "echo": True}
        answer = await stack.openai.completions.create(**asked)
        [choice] = answer.choices
        assert choice.text == "go" + WHOLE
        scored = choice.logprobs
        assert scored.tokens == ["g", "o", *TEXTS]
        assert scored.token_logprobs == [None, HALF, *[HALF] * 5]
        assert scored.top_logprobs[:2] == [None, {"o": HALF}]
        assert scored.text_offset == [0, 1, 2, 5, 10, 10, 12]
        texts, tokens, offsets = "", [], []
        async for chunk in await stack.openai.completions.create(**asked, stream=True):
            texts += chunk.choices[0].text
            if chunk.choices[0].logprobs is not None:
                tokens += chunk.choices[0].logprobs.tokens
                offsets += chunk.choices[0].logprobs.text_offset
        assert (texts, tokens, offsets) == (choice.text, scored.tokens, scored.text_offset)


@pytest.mark.parametrize("logprobs", [None, 0, 1])
async def test_with_echo_no_token_at_all_may_be_asked_for(a_stack, logprobs) -> None:
    def script_of(submission: SubmitRequest) -> Script:
        assert submission.max_tokens == 1
        return Script(texts=("never shown",))

    async with a_stack(script_of) as stack:
        asked = {"model": "tide-tiny", "prompt": ["go", "on"], "echo": True, "max_tokens": 0}
        answer = await stack.openai.completions.create(**asked, logprobs=logprobs)
        assert [choice.text for choice in answer.choices] == ["go", "on"]
        assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
        assert answer.usage.completion_tokens == 0
        if logprobs is not None:
            assert answer.choices[0].logprobs.tokens == ["g", "o"]
            assert answer.choices[1].logprobs.token_logprobs == [None, HALF]
        streamed = {0: "", 1: ""}
        stream = await stack.openai.completions.create(**asked, logprobs=logprobs, stream=True)
        async for chunk in stream:
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == {0: "go", 1: "on"}


async def test_without_echo_no_token_at_all_is_refused(a_stack) -> None:
    async with a_stack(SCRIPT) as stack:
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            await stack.openai.completions.create(model="tide-tiny", prompt="go", max_tokens=0)

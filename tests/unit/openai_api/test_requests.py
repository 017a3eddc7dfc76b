"""Requests of OpenAI's API: what becomes of them, and which field a refusal names."""

import json

import pytest

from libs.contracts.online import SamplingParameters
from libs.openai_api.chat import chat_submission
from libs.openai_api.choices import choices_of
from libs.openai_api.completions import completion_submissions
from libs.openai_api.errors import ApiError
from libs.openai_api.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    parse,
)

A_TOOL = {"type": "function", "function": {"name": "a"}}
CHAT = "chat"
COMPLETIONS = "completions"
GOOD = {"model": "tide-tiny", "prompt": "go"}
GOOD_CHAT = {"model": "tide-tiny", "messages": [{"role": "user", "content": "hello"}]}


def submit(path: str, change: dict[str, object]):
    if path == CHAT:
        chat = parse(ChatRequest, json.dumps({**GOOD_CHAT, **change}).encode())
        return chat_submission(chat, request_id="r", expires_after_ms=5)
    text = parse(CompletionRequest, json.dumps({**GOOD, **change}).encode())
    return completion_submissions(text, request_id="r", expires_after_ms=5)[0]


@pytest.mark.parametrize(
    ("path", "change", "parameter"),
    [
        (COMPLETIONS, {"model": None}, "model"),
        (COMPLETIONS, {"prompt": None}, "prompt"),
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", ""]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1], []]}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 129}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 9, "n": 16}, "prompt"),
        (COMPLETIONS, {"prompt": [[]]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt[0]"),
        (COMPLETIONS, {"prompt": 5}, "prompt"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens"),
        (COMPLETIONS, {"max_tokens": "many"}, "max_tokens"),
        (COMPLETIONS, {"temperature": -0.1}, "temperature"),
        (COMPLETIONS, {"temperature": 2.1}, "temperature"),
        (COMPLETIONS, {"top_p": 0}, "top_p"),
        (COMPLETIONS, {"top_k": -2}, "top_k"),
        (COMPLETIONS, {"seed": 2**63}, "seed"),
        (COMPLETIONS, {"stop": ["a"] * 5}, "stop"),
        (COMPLETIONS, {"stop": ["a" * 300]}, "stop[0]"),
        (COMPLETIONS, {"stop": ""}, "stop[0]"),
        (COMPLETIONS, {"priority": 101}, "priority"),
        (COMPLETIONS, {"seed": -(2**63) - 1}, "seed"),
        (COMPLETIONS, {"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        (COMPLETIONS, {"min_tokens": -1}, "min_tokens"),
        (COMPLETIONS, {"n": 0}, "n"),
        (COMPLETIONS, {"n": 17}, "n"),
        (COMPLETIONS, {"n": 1.5}, "n"),
        (COMPLETIONS, {"best_of": 2}, "best_of"),
        (COMPLETIONS, {"best_of": 2, "n": 3}, "best_of"),
        (COMPLETIONS, {"suffix": "x"}, "suffix"),
        (COMPLETIONS, {"logprobs": -1}, "logprobs"),
        (COMPLETIONS, {"logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"logit_bias": {"secret": 1}}, "logit_bias"),
        (COMPLETIONS, {"logit_bias": {"-1": 1}}, "logit_bias"),
        (COMPLETIONS, {"logit_bias": {"1.5": 1}}, "logit_bias"),
        (COMPLETIONS, {"logit_bias": {"5": 101}}, "logit_bias"),
        (COMPLETIONS, {"logit_bias": {"5": "much"}}, "logit_bias"),
        (COMPLETIONS, {"logit_bias": [5]}, "logit_bias"),
        (COMPLETIONS, {"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, "logit_bias"),
        (COMPLETIONS, {"min_p": 1.1}, "min_p"),
        (COMPLETIONS, {"repetition_penalty": 0}, "repetition_penalty"),
        (COMPLETIONS, {"presence_penalty": 2.5}, "presence_penalty"),
        (COMPLETIONS, {"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        (COMPLETIONS, {"stop_token_ids": [1] * 65}, "stop_token_ids"),
        (COMPLETIONS, {"skip_special_tokens": False}, "skip_special_tokens"),
        (COMPLETIONS, {"stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hi"}, "messages"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls"),
        (CHAT, {"messages": [{"role": "user", "function_call": {}}]}, "messages[0].function_call"),
        (CHAT, {"tool_choice": {"type": "function"}, "tools": [A_TOOL]}, "tool_choice"),
        (
            CHAT,
            {"tool_choice": {"type": "function", "function": {"name": "b"}}, "tools": [A_TOOL]},
            "tool_choice",
        ),
        (CHAT, {"tool_choice": "required", "tools": [{"type": "function"}]}, "tools[0]"),
        (
            CHAT,
            {
                "tool_choice": "required",
                "tools": [A_TOOL],
                "response_format": {"type": "json_object"},
            },
            "tool_choice",
        ),
        (CHAT, {"logprobs": 5}, "logprobs"),
        (CHAT, {"top_logprobs": 5}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        (CHAT, {"tools": [{}] * 129}, "tools"),
        (CHAT, {"tools": ["a"]}, "tools[0]"),
        (CHAT, {"min_tokens": 6, "max_completion_tokens": 5}, "min_tokens"),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format"),
        (CHAT, {"response_format": {"type": "xml"}}, "response_format.type"),
        (CHAT, {"response_format": "json"}, "response_format"),
        (
            CHAT,
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"title": "x" * 70_000}},
                }
            },
            "response_format",
        ),
        (CHAT, {"frequency_penalty": -2.1}, "frequency_penalty"),
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_a_wrong_or_unserved_field_is_named(path: str, change: dict, parameter: str) -> None:
    with pytest.raises(ApiError) as raised:
        submit(path, change)
    answer = raised.value.answer
    assert answer.status == 400
    assert answer.parameter == parameter
    assert answer.type == "invalid_request_error"


def test_a_refusal_never_repeats_what_was_sent() -> None:
    secret = "my-secret-value"
    for change in (
        {"temperature": secret},
        {"n": secret},
        {"seed": [secret]},
        {secret: 1, "n": 20},
        {"logit_bias": {secret: 1}},
        {"logit_bias": {"5": secret}},
        {"stop_token_ids": [secret]},
    ):
        with pytest.raises(ApiError) as raised:
            submit(COMPLETIONS, change)
        assert secret not in json.dumps(raised.value.answer.envelope())


@pytest.mark.parametrize(
    ("change", "token_ids"),
    [({"prompt": [5, 6]}, (5, 6)), ({"prompt": [[5, 6]]}, (5, 6)), ({"prompt": ["go"]}, None)],
)
def test_every_form_of_a_single_prompt_is_understood(change: dict, token_ids: object) -> None:
    submission = submit(COMPLETIONS, change)
    assert submission.prompt_token_ids == token_ids
    assert submission.prompt == (None if token_ids else "go")


def test_the_newer_name_of_the_token_limit_wins() -> None:
    assert submit(CHAT, {"max_tokens": 5, "max_completion_tokens": 6}).max_tokens == 6
    assert submit(CHAT, {"max_tokens": 5, "max_completion_tokens": None}).max_tokens == 5
    assert submit(CHAT, {}).max_tokens is None
    assert submit(COMPLETIONS, {}).max_tokens == 16


def test_defaults_are_openais_and_zero_is_a_value() -> None:
    assert submit(CHAT, {}).sampling.temperature == 1.0
    assert submit(CHAT, {"temperature": None}).sampling.temperature == 1.0
    assert submit(CHAT, {"temperature": 0}).sampling.temperature == 0.0
    assert submit(CHAT, {"seed": 0}).sampling.seed == 0
    assert submit(CHAT, {"top_k": 0}).sampling.top_k is None
    assert submit(CHAT, {"top_k": -1}).sampling.top_k is None


def test_one_stop_string_or_several() -> None:
    assert submit(CHAT, {"stop": "x"}).stop == ("x",)
    assert submit(CHAT, {"stop": ["x", "y"]}).stop == ("x", "y")
    assert submit(CHAT, {"stop": None}).stop == ()
    assert submit(CHAT, {"stop": []}).stop == ()


def test_a_request_carries_its_id_and_its_time_limit() -> None:
    submission = submit(CHAT, {})
    assert (submission.request_id, submission.expires_after_ms) == ("r", 5)


def test_every_option_that_other_servers_know_reaches_the_message() -> None:
    options = {
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"7": -100, "8": 2.5},
        "min_tokens": 3,
        "stop_token_ids": [9],
    }
    for path in (CHAT, COMPLETIONS):
        sampling = submit(path, options).sampling
        assert sampling.min_p == 0.1
        assert sampling.repetition_penalty == 1.1
        assert sampling.presence_penalty == 0.5
        assert sampling.frequency_penalty == -0.5
        assert sampling.logit_bias == {7: -100.0, 8: 2.5}
        assert sampling.min_tokens == 3
        assert sampling.stop_token_ids == (9,)
        assert sampling.logprobs is None


def test_each_endpoint_has_its_own_way_to_ask_for_log_probabilities() -> None:
    assert submit(CHAT, {"logprobs": True}).sampling.logprobs == 0
    assert submit(CHAT, {"logprobs": True, "top_logprobs": 5}).sampling.logprobs == 5
    assert submit(CHAT, {"logprobs": False, "top_logprobs": 0}).sampling.logprobs is None
    assert submit(COMPLETIONS, {"logprobs": 0}).sampling.logprobs == 0
    assert submit(COMPLETIONS, {"logprobs": 5}).sampling.logprobs == 5


def test_tools_go_along_unless_none_may_be_chosen() -> None:
    tool = {"type": "function", "function": {"name": "tide"}}
    assert submit(CHAT, {"tools": [tool]}).tools == (tool,)
    assert submit(CHAT, {"tools": [tool], "tool_choice": "auto"}).tools == (tool,)
    assert submit(CHAT, {"tools": [tool], "tool_choice": "none"}).tools == ()
    assert submit(CHAT, {"tools": None}).tools == ()


def test_more_tokens_at_least_than_the_default_allows_raise_the_default() -> None:
    assert submit(COMPLETIONS, {"min_tokens": 40}).max_tokens == 40


def test_choices_have_ids_and_seeds_of_their_own_and_the_first_keeps_the_seed() -> None:
    text = parse(CompletionRequest, json.dumps({**GOOD, "prompt": ["a", "b"], "n": 2}).encode())
    prompts = completion_submissions(text, request_id="r", expires_after_ms=5)
    seeded = [p.model_copy(update={"sampling": SamplingParameters(seed=7)}) for p in prompts]
    choices = choices_of(seeded, answers=2)
    assert [c.request_id for c in choices] == ["r-0", "r-1", "r-2", "r-3"]
    assert [c.prompt for c in choices] == ["a", "a", "b", "b"]
    seeds = [c.sampling.seed for c in choices]
    assert seeds[0] == seeds[2] == 7
    assert seeds[1] == seeds[3] != 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert {c.sampling.seed for c in choices_of(prompts, answers=2)} == {None}
    assert choices_of(prompts[:1], answers=1) == prompts[:1]


@pytest.mark.parametrize(
    ("shape", "body", "parameter"),
    [
        (TokenizeRequest, {}, "prompt"),
        (TokenizeRequest, {"prompt": "a", "messages": []}, "prompt"),
        (TokenizeRequest, {"prompt": ["a"]}, "prompt"),
        (DetokenizeRequest, {}, "tokens"),
        (DetokenizeRequest, {"tokens": [-1]}, "tokens[0]"),
        (DetokenizeRequest, {"tokens": [2**31]}, "tokens[0]"),
    ],
)
def test_a_wrong_question_about_text_is_named(shape: type, body: dict, parameter: str) -> None:
    with pytest.raises(ApiError) as raised:
        parse(shape, json.dumps(body).encode())
    assert raised.value.answer.parameter == parameter

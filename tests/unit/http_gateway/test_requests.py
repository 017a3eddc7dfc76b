"""Requests of OpenAI's API: what becomes of them, and which field a refusal names."""

import json

import pytest

from services.http_gateway.chat import chat_submission
from services.http_gateway.completions import completion_submission
from services.http_gateway.errors import ApiError
from services.http_gateway.schemas import ChatRequest, CompletionRequest, parse

CHAT = "chat"
COMPLETIONS = "completions"
GOOD = {"model": "tide-tiny", "prompt": "go"}
GOOD_CHAT = {"model": "tide-tiny", "messages": [{"role": "user", "content": "hello"}]}


def submit(path: str, change: dict[str, object]):
    if path == CHAT:
        chat = parse(ChatRequest, json.dumps({**GOOD_CHAT, **change}).encode())
        return chat_submission(chat, request_id="r", expires_after_ms=5)
    text = parse(CompletionRequest, json.dumps({**GOOD, **change}).encode())
    return completion_submission(text, request_id="r", expires_after_ms=5)


@pytest.mark.parametrize(
    ("path", "change", "parameter"),
    [
        (COMPLETIONS, {"model": None}, "model"),
        (COMPLETIONS, {"prompt": None}, "prompt"),
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1], [2]]}, "prompt"),
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
        (COMPLETIONS, {"min_tokens": 5}, "min_tokens"),
        (COMPLETIONS, {"n": 2}, "n"),
        (COMPLETIONS, {"best_of": 2}, "best_of"),
        (COMPLETIONS, {"echo": True}, "echo"),
        (COMPLETIONS, {"suffix": "x"}, "suffix"),
        (COMPLETIONS, {"logprobs": 0}, "logprobs"),
        (COMPLETIONS, {"logit_bias": {"5": 1}}, "logit_bias"),
        (COMPLETIONS, {"presence_penalty": 0.5}, "presence_penalty"),
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
        (
            CHAT,
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls",
        ),
        (CHAT, {"logprobs": True}, "logprobs"),
        (CHAT, {"tools": [{"type": "function"}]}, "tools"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"frequency_penalty": -1}, "frequency_penalty"),
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
    for change in ({"temperature": secret}, {"n": secret}, {"seed": [secret]}, {secret: 1, "n": 2}):
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

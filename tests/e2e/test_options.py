"""Options of the HTTP API through a real fleet: what comes back belongs together."""

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from libs.client.client import TideClient
from libs.client.errors import RequestRefused
from libs.contracts.online import RejectReason

SHIP = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "draught": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "draught"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "What does str.split do?"}]


@pytest.fixture(scope="module")
def under_test(start_fleet: Callable[..., Any]) -> Any:
    return start_fleet(workers=1, routers=1)


@pytest.fixture(scope="module")
def http(under_test: Any) -> Any:
    with httpx.Client(base_url=under_test.fleet.http_url, timeout=60) as client:
        yield client


def ask(http: httpx.Client, path: str, **fields: object) -> dict[str, Any]:
    response = http.post(path, json={"model": "tide-tiny", "max_tokens": 12, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_token_ids_and_text_of_an_answer_belong_together(http: httpx.Client) -> None:
    asked = {"messages": QUESTION, "temperature": 0, "ignore_eos": True}
    answer = ask(http, "/v1/chat/completions", **asked, return_token_ids=True)
    prompt_ids = ask(http, "/tokenize", messages=QUESTION)["tokens"]
    assert answer["prompt_token_ids"] == prompt_ids
    assert answer["usage"]["prompt_tokens"] == len(prompt_ids)
    [choice] = answer["choices"]
    assert len(choice["token_ids"]) == 12
    told = ask(http, "/v1/completions", prompt=prompt_ids, temperature=0, ignore_eos=True)
    assert told["choices"][0]["text"] == choice["message"]["content"]


def test_log_probabilities_are_of_the_tokens_shown(http: httpx.Client) -> None:
    asked = {"messages": QUESTION, "temperature": 0, "ignore_eos": True, "logprobs": True}
    answer = ask(http, "/v1/chat/completions", **asked, top_logprobs=3)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 12
    for entry in content:
        best = entry["top_logprobs"]
        assert len(best) == 3
        assert entry["logprob"] == max(item["logprob"] for item in best), "greedy takes the best"
        assert sum(math.exp(item["logprob"]) for item in best) <= 1 + 1e-6


def test_the_first_of_several_seeded_answers_is_what_it_is_alone(http: httpx.Client) -> None:
    # Tokens in no order: after a question that it knows, the bundled model is sure of its answer
    # at any temperature.
    asked = {"prompt": [300, 1900, 77, 1203, 640], "temperature": 2.0, "seed": 11}
    alone = ask(http, "/v1/completions", **asked, ignore_eos=True)
    several = ask(http, "/v1/completions", **asked, ignore_eos=True, n=3)
    texts = [choice["text"] for choice in several["choices"]]
    assert texts[0] == alone["choices"][0]["text"]
    assert len(set(texts)) == 3
    assert several["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert several["usage"]["completion_tokens"] == 36


def test_echo_of_token_ids_is_their_text(http: httpx.Client) -> None:
    prompt = "The tide comes in"
    tokens = ask(http, "/tokenize", prompt=prompt, add_special_tokens=False)["tokens"]
    answer = ask(http, "/v1/completions", prompt=[tokens, tokens], echo=True, temperature=0)
    assert len(answer["choices"]) == 2
    assert all(choice["text"].startswith(prompt) for choice in answer["choices"])
    assert ask(http, "/detokenize", tokens=tokens)["prompt"] == prompt


def test_a_prompt_scores_what_it_scored_as_an_answer(http: httpx.Client) -> None:
    prompt = ask(http, "/tokenize", messages=QUESTION)["tokens"]
    asked = {"temperature": 0, "ignore_eos": True, "logprobs": 1}
    shown = {"return_token_ids": True}
    answer = ask(http, "/v1/completions", prompt=prompt, **asked, **shown)["choices"][0]
    whole = [*prompt, *answer["token_ids"]]
    for max_tokens in (0, 1):
        echoed = ask(
            http, "/v1/completions", prompt=whole, echo=True, **asked | {"max_tokens": max_tokens}
        )
        assert echoed["usage"]["completion_tokens"] == max_tokens
        scored = echoed["choices"][0]["logprobs"]
        assert len(scored["tokens"]) == len(whole) + max_tokens
        assert scored["token_logprobs"][0] is None
        again = scored["token_logprobs"][len(prompt) : len(whole)]
        assert again == pytest.approx(answer["logprobs"]["token_logprobs"], abs=1e-4)


def test_a_forbidden_token_never_comes_and_a_forced_one_always_does(http: httpx.Client) -> None:
    asked = {"prompt": "The", "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    first = ask(http, "/v1/completions", **asked)["choices"][0]["token_ids"][0]
    bias = {str(first): -100}
    without = ask(http, "/v1/completions", **asked, logit_bias=bias)["choices"][0]["token_ids"]
    assert first not in without
    forced = ask(http, "/v1/completions", **asked, logit_bias={"500": 100})
    assert forced["choices"][0]["token_ids"] == [500] * 12


def assert_is_a_ship(text: str) -> None:
    ship = json.loads(text)
    assert list(ship) == ["name", "draught"]
    assert len(ship["name"]) <= 8
    assert 0 <= ship["draught"] <= 99


def test_over_http_every_choice_is_held_to_the_schema(http: httpx.Client) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "ship", "schema": SHIP}}
    asked = {"messages": QUESTION, "temperature": 1.2, "seed": 4, "max_tokens": 200}
    answer = ask(http, "/v1/chat/completions", **asked, n=3, response_format=response_format)
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop"
        assert_is_a_ship(choice["message"]["content"])


def test_over_nats_the_same_field_holds_the_answer_or_is_refused_by_name(under_test: Any) -> None:
    async def complete(client: TideClient, schema: dict[str, Any]) -> str:
        response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
        answer = await client.complete(
            model="tide-tiny", prompt="The", max_tokens=200, response_format=response_format
        )
        return answer.text

    async def work() -> None:
        async with await TideClient.connect(under_test.fleet.nats_url) as client:
            assert_is_a_ship(await complete(client, SHIP))
            bombs: list[dict[str, Any]] = [
                {"type": "nonsense"},
                {"type": "integer", "multipleOf": 828_000_007},
                {"allOf": [{"$ref": "#"}]},
            ]
            for bomb in bombs:
                beside = asyncio.create_task(complete(client, SHIP))
                with pytest.raises(RequestRefused) as refusal:
                    await complete(client, bomb)
                assert refusal.value.reason is RejectReason.INVALID
                assert refusal.value.parameter == "response_format"
                assert_is_a_ship(await beside)

    under_test.runner.run(work())


def test_a_forced_tool_is_called_with_arguments_that_fit_it(http: httpx.Client) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": SHIP}}
        for name in ("launch", "sink")
    ]
    asked = {"messages": QUESTION, "tools": tools, "temperature": 1.0, "seed": 3}
    named = {"type": "function", "function": {"name": "sink"}}
    for choice, names in (("required", {"launch", "sink"}), (named, {"sink"})):
        answer = ask(http, "/v1/chat/completions", **asked, max_tokens=300, tool_choice=choice)
        [shown] = answer["choices"]
        assert shown["finish_reason"] == "tool_calls"
        [call] = shown["message"]["tool_calls"]
        assert call["function"]["name"] in names
        assert_is_a_ship(call["function"]["arguments"])

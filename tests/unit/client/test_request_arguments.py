"""What a caller says becomes a SubmitRequest, or a refusal that names the field."""

import pytest

from libs.client.errors import RequestRefused
from libs.client.request_arguments import submission_of
from libs.contracts.online import RejectReason


def test_every_sampling_parameter_lands_in_the_message() -> None:
    submission = submission_of(
        {
            "prompt": "go",
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 7,
            "min_p": 0.1,
            "seed": -5,
            "repetition_penalty": 1.2,
            "presence_penalty": -0.5,
            "frequency_penalty": 0.25,
            "logit_bias": {5: -100.0},
            "min_tokens": 3,
            "stop_token_ids": [1, 2],
            "logprobs": 4,
            "prompt_logprobs": True,
            "max_tokens": 8,
        }
    )
    assert submission.max_tokens == 8
    assert submission.sampling.model_dump() == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": -5,
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {5: -100.0},
        "min_tokens": 3,
        "stop_token_ids": (1, 2),
        "logprobs": 4,
        "prompt_logprobs": True,
    }


def test_one_stop_string_is_not_taken_for_its_characters() -> None:
    assert submission_of({"prompt": "go", "stop": "end"}).stop == ("end",)
    assert submission_of({"prompt": "go", "stop": ["a", "b"]}).stop == ("a", "b")
    assert submission_of({"prompt": "go"}).stop == ()


def test_tools_go_with_messages_only() -> None:
    tool = {"type": "function", "function": {"name": "tide"}}
    messages = [{"role": "user", "content": "hello"}]
    assert submission_of({"messages": messages, "tools": [tool]}).tools == (tool,)
    with pytest.raises(RequestRefused, match="tools go with messages only"):
        submission_of({"prompt": "go", "tools": [tool]})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", {5: 101}),
        ("logit_bias", {-1: 0}),
        ("logit_bias", {"five": 0}),
        ("stop_token_ids", [-1]),
        ("logprobs", 21),
        ("seed", 2**63),
        ("temperature", float("nan")),
        ("stop", ["a", "b", "c", "d", "e"]),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(argument: str, value: object) -> None:
    with pytest.raises(RequestRefused, match=argument) as refusal:
        submission_of({"prompt": "go", argument: value})  # type: ignore[misc]
    assert refusal.value.reason is RejectReason.INVALID


def test_more_tokens_before_a_stop_than_tokens_at_all_are_refused() -> None:
    with pytest.raises(RequestRefused, match="min_tokens must not exceed max_tokens"):
        submission_of({"prompt": "go", "min_tokens": 9, "max_tokens": 8})


def test_an_argument_that_does_not_exist_is_the_programmers_error() -> None:
    with pytest.raises(TypeError, match="max_token"):
        submission_of({"prompt": "go", "max_token": 8})  # type: ignore[typeddict-unknown-key]


def test_without_an_id_every_request_gets_its_own() -> None:
    ids = {submission_of({"prompt": "go"}).request_id for _ in range(3)}
    assert len(ids) == 3
    assert submission_of({"prompt": "go", "request_id": "mine"}).request_id == "mine"

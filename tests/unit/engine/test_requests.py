"""What is refused before it reaches the scheduler, and with which words."""

from collections.abc import Callable

import pytest

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions, refuse_reason

RequestBuilder = Callable[..., SequenceRequest]


def reason(request: SequenceRequest) -> str | None:
    return refuse_reason(
        request, context_tokens_max=20, vocabulary_size=100, blocks_total=4, block_tokens=4
    )


def test_a_request_that_fits_is_not_refused(a_request: RequestBuilder) -> None:
    assert reason(a_request(prompt=tuple(range(15)))) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ()}, "the prompt is empty"),
        ({"prompt": tuple(range(16))}, "16 tokens leave no room"),
        ({"prompt": (1,) * 10, "generated_token_ids": (1,) * 6}, "16 tokens leave no room"),
        ({"prompt": (1, 100)}, "token id 100 is outside the vocabulary of 100"),
        ({"prompt": (-1,)}, "token id -1 is outside"),
        ({"generated_token_ids": (500,), "max_tokens": 9}, "token id 500 is outside"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"generated_token_ids": (1, 2, 3, 4)}, "max_tokens are generated already"),
        ({"stop": StopOptions(max_tokens=1, stop_strings=("a", ""))}, "a stop string is empty"),
        ({"sampling": SamplingOptions(temperature=-0.1)}, "temperature is -0.1"),
        ({"sampling": SamplingOptions(temperature=float("nan"))}, "temperature is nan"),
        ({"sampling": SamplingOptions(top_p=0.0)}, "top_p is 0.0"),
        ({"sampling": SamplingOptions(top_p=1.5)}, "top_p is 1.5"),
        ({"sampling": SamplingOptions(top_k=0)}, "top_k is 0"),
        ({"sampling": SamplingOptions(min_p=1.5)}, "min_p is 1.5"),
        ({"sampling": SamplingOptions(repetition_penalty=0.0)}, "repetition_penalty is 0.0"),
        ({"sampling": SamplingOptions(presence_penalty=float("nan"))}, "presence_penalty is nan"),
        ({"sampling": SamplingOptions(frequency_penalty=1e9)}, "frequency_penalty is 1000000000"),
        ({"sampling": SamplingOptions(logprobs=-1)}, "logprobs is -1"),
        (
            {"sampling": SamplingOptions(logit_bias=((3, 1.0), (100, 1.0)))},
            "logit_bias: token id 100 is outside the vocabulary of 100",
        ),
        ({"sampling": SamplingOptions(logit_bias=((3, float("inf")),))}, "token id 3 is inf"),
        (
            {"stop": StopOptions(max_tokens=1, stop_token_ids=frozenset({5, 100}))},
            "stop_token_ids: token id 100 is outside the vocabulary of 100",
        ),
        ({"stop": StopOptions(max_tokens=4, min_tokens=5)}, "min_tokens is 5"),
        ({"stop": StopOptions(max_tokens=4, min_tokens=-1)}, "min_tokens is -1"),
    ],
)
def test_what_can_never_run_is_refused_with_its_reason(
    a_request: RequestBuilder, changes: dict[str, object], words: str
) -> None:
    refusal = reason(a_request(**changes))
    assert refusal is not None
    assert words in refusal


def test_a_stop_token_of_the_request_stops_even_when_eos_is_ignored() -> None:
    stop = StopOptions(max_tokens=1, stop_token_ids=frozenset({5}), ignore_eos=True)
    assert stop.is_stop_token(5, output_index=0, eos_token_ids=frozenset({6}))
    assert not stop.is_stop_token(6, output_index=0, eos_token_ids=frozenset({6}))
    assert stop.ending_token_ids(frozenset({6})) == {5}


def test_no_token_stops_before_min_tokens() -> None:
    stop = StopOptions(max_tokens=9, min_tokens=2, stop_token_ids=frozenset({5}))
    assert stop.ending_token_ids(frozenset({6})) == {5, 6}
    for token_id in (5, 6):
        stops = [
            stop.is_stop_token(token_id, output_index=index, eos_token_ids=frozenset({6}))
            for index in range(4)
        ]
        assert stops == [False, False, True, True]

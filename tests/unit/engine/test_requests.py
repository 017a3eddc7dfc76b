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
    assert stop.is_stop_token(5, eos_token_ids=frozenset({6}))
    assert not stop.is_stop_token(6, eos_token_ids=frozenset({6}))

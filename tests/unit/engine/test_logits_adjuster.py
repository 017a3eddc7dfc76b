"""What changes a sequence's logits, number by number, and in which order."""

from collections.abc import Callable

import pytest
import torch

from libs.engine.logits_adjuster import LogitsAdjuster, needs_adjuster
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.sampling import SamplingRow, sample_tokens

RequestBuilder = Callable[..., SequenceRequest]
LOGITS = [2.0, -1.0, 0.5, 3.0, -2.0, 1.0]
NEVER = float("-inf")


def adjusted(request: SequenceRequest, *pushed: int) -> list[float]:
    adjuster = LogitsAdjuster(
        request,
        eos_token_ids=frozenset({5}),
        vocabulary_size=len(LOGITS),
        device=torch.device("cpu"),
    )
    for token_id in pushed:
        adjuster.push(token_id)
    logits = torch.tensor(LOGITS)
    adjuster.adjust_(logits, output_index=len(request.generated_token_ids) + len(pushed))
    return [round(value, 4) for value in logits.tolist()]


def test_a_repetition_penalty_weakens_what_is_in_prompt_or_answer(
    a_request: RequestBuilder,
) -> None:
    request = a_request(prompt=(0, 1), sampling=SamplingOptions(repetition_penalty=2.0))
    assert adjusted(request, 2) == [1.0, -2.0, 0.25, 3.0, -2.0, 1.0]


def test_presence_and_frequency_count_the_answer_alone(a_request: RequestBuilder) -> None:
    options = SamplingOptions(presence_penalty=0.5, frequency_penalty=0.25)
    request = a_request(prompt=(3, 3), generated_token_ids=(0,), sampling=options)
    assert adjusted(request, 0, 4) == [1.0, -1.0, 0.5, 3.0, -2.75, 1.0]


def test_a_bias_is_added_before_a_repetition_penalty_divides(a_request: RequestBuilder) -> None:
    options = SamplingOptions(logit_bias=((1, 3.0), (4, -100.0)), repetition_penalty=2.0)
    assert adjusted(a_request(prompt=(1,), sampling=options)) == [2.0, 1.0, 0.5, 3.0, -102.0, 1.0]


@pytest.mark.parametrize(
    ("ignore_eos", "expected"),
    [
        (False, [2.0, -1.0, 0.5, NEVER, -2.0, NEVER]),
        (True, [2.0, -1.0, 0.5, NEVER, -2.0, 1.0]),
    ],
)
def test_nothing_ends_the_sequence_before_min_tokens(
    a_request: RequestBuilder, ignore_eos: bool, expected: list[float]
) -> None:
    stop = StopOptions(
        max_tokens=9, min_tokens=2, stop_token_ids=frozenset({3}), ignore_eos=ignore_eos
    )
    biased = SamplingOptions(logit_bias=((3, 100.0),))
    request = a_request(stop=stop, sampling=biased)
    assert adjusted(request) == expected
    assert adjusted(request, 0) == expected
    assert adjusted(request, 0, 0)[3] == 103.0


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(repetition_penalty=1.4, presence_penalty=0.3),
        SamplingOptions(frequency_penalty=-0.7, logit_bias=((2, 1.5),)),
    ],
)
def test_tokens_from_elsewhere_count_as_those_from_here(
    a_request: RequestBuilder, options: SamplingOptions
) -> None:
    here = adjusted(a_request(sampling=options, max_tokens=9), 0, 2, 2)
    resumed = a_request(sampling=options, max_tokens=9, generated_token_ids=(0, 2))
    assert adjusted(resumed, 2) == here


def test_only_what_changes_logits_needs_an_adjuster(a_request: RequestBuilder) -> None:
    plain = SamplingOptions(temperature=1.0, top_k=3, top_p=0.5, min_p=0.1, logprobs=5)
    stop = StopOptions(max_tokens=9, min_tokens=2)
    assert not needs_adjuster(a_request(sampling=plain))
    assert needs_adjuster(a_request(sampling=SamplingOptions(presence_penalty=0.1)))
    assert needs_adjuster(a_request(sampling=SamplingOptions(logit_bias=((1, 0.5),))))
    assert needs_adjuster(a_request(stop=stop))
    assert not needs_adjuster(a_request(stop=stop, generated_token_ids=(1, 2)))


def test_the_neighbours_of_an_adjusted_row_keep_their_logits(a_request: RequestBuilder) -> None:
    options = SamplingOptions(logit_bias=((1, 50.0),))
    adjuster = LogitsAdjuster(
        a_request(sampling=options),
        eos_token_ids=frozenset(),
        vocabulary_size=len(LOGITS),
        device=torch.device("cpu"),
    )
    logits = torch.tensor([LOGITS] * 3)
    plain = SamplingRow(options=SamplingOptions(), output_index=0)
    changed = SamplingRow(options=options, output_index=0, adjuster=adjuster)
    assert sample_tokens(logits, [plain, changed, plain]) == [3, 1, 3]
    assert logits.tolist() == [LOGITS] * 3

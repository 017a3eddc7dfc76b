"""Sampling depends on the logits, the options and (seed, index) - and on nothing else."""

import math

import pytest
import torch
from scipy.stats import chisquare

from libs.engine.requests import SamplingOptions
from libs.engine.sampling import SamplingRow, gumbel_noise, sample_tokens

CPU = torch.device("cpu")
PINNED = [1.607515520343545, -0.713983450427617, 2.953562784635519, -2.094979725272437]
"""Computed with Python's own integers and logarithms, not with the code under test."""


def a_row(*, index: int = 0, **options: object) -> SamplingRow:
    fields = {"temperature": 1.0, "seed": 1} | options
    return SamplingRow(options=SamplingOptions(**fields), output_index=index)  # type: ignore[arg-type]


def logits_of(rows: int, vocabulary: int = 50, *, seed: int = 3) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def frequencies(options: SamplingOptions, probabilities: list[float], draws: int) -> list[int]:
    logits = torch.tensor([[math.log(p) for p in probabilities]]).expand(draws, -1)
    rows = [SamplingRow(options=options, output_index=index) for index in range(draws)]
    tokens = sample_tokens(logits, rows)
    return [tokens.count(token_id) for token_id in range(len(probabilities))]


def test_temperature_zero_takes_the_best() -> None:
    logits = logits_of(5)
    assert sample_tokens(logits, [a_row(temperature=0.0)] * 5) == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 7},
        {"top_p": 0.8},
        {"top_k": 20, "top_p": 0.5, "temperature": 0.7},
        {"min_p": 0.1, "top_p": 0.9},
    ],
)
def test_a_row_gets_the_same_token_alone_and_in_any_batch(options: dict[str, object]) -> None:
    logits = logits_of(40)
    others: list[dict[str, object]] = [
        {},
        {"temperature": 0.0},
        {"top_k": 3},
        {"top_p": 0.3, "seed": 9},
    ]
    rows = [
        a_row(index=index, **(options if index % 2 else others[index // 2 % 4]))
        for index in range(40)
    ]
    together = sample_tokens(logits, rows)
    alone = [sample_tokens(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert together == alone


def test_the_noise_is_pinned_for_ever() -> None:
    """A changed hash would change every seeded answer: between releases, and within a fleet that
    is being upgraded."""
    noise = gumbel_noise([a_row(seed=7, index=3)], vocabulary_size=4, device=CPU)[0].tolist()
    assert noise == pytest.approx(PINNED, abs=1e-12)


def test_neighbouring_seeds_and_indices_give_unrelated_noise() -> None:
    rows = [a_row(seed=s, index=i) for s, i in ((0, 0), (0, 1), (1, 0), (1, 1), (-1, 0))]
    noise = gumbel_noise(rows, vocabulary_size=4000, device=CPU)
    correlation = torch.corrcoef(noise) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.06


def test_seeds_of_any_size_are_taken() -> None:
    rows = [a_row(seed=seed) for seed in (0, -1, 2**63, 2**64 - 1)]
    noise = gumbel_noise(rows, vocabulary_size=10, device=CPU)
    assert torch.isfinite(noise).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    probabilities = [0.4, 0.3, 0.15, 0.1, 0.05]
    powered = [p ** (1 / temperature) for p in probabilities]
    counts = frequencies(SamplingOptions(temperature=temperature, seed=5), probabilities, 6000)
    expected = [6000 * p / sum(powered) for p in powered]
    assert chisquare(counts, expected).pvalue > 0.001


def test_a_wrong_distribution_would_be_noticed() -> None:
    counts = frequencies(SamplingOptions(temperature=1.0, seed=5), [0.4, 0.35, 0.25], 6000)
    assert chisquare(counts, [2100, 2400, 1500]).pvalue < 0.001


def test_top_k_keeps_the_k_best_in_their_proportions() -> None:
    counts = frequencies(
        SamplingOptions(temperature=1.0, top_k=2, seed=5), [0.1, 0.4, 0.3, 0.2], 6000
    )
    assert counts[0] == counts[3] == 0
    assert chisquare(counts[1:3], [6000 * 4 / 7, 6000 * 3 / 7]).pvalue > 0.001


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.39, {1}), (0.41, {1, 2}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    counts = frequencies(
        SamplingOptions(temperature=1.0, top_p=top_p, seed=5), [0.1, 0.4, 0.3, 0.2], 1500
    )
    assert {token_id for token_id, count in enumerate(counts) if count} == kept


@pytest.mark.parametrize(
    ("min_p", "kept"),
    [(1.0, {1}), (0.76, {1}), (0.74, {1, 2}), (0.3, {1, 2, 3}), (0.2, {0, 1, 2, 3})],
)
def test_min_p_keeps_what_has_this_share_of_the_best(min_p: float, kept: set[int]) -> None:
    counts = frequencies(
        SamplingOptions(temperature=1.0, min_p=min_p, seed=5), [0.1, 0.4, 0.3, 0.2], 1500
    )
    assert {token_id for token_id, count in enumerate(counts) if count} == kept


def test_min_p_looks_at_the_scores_after_the_temperature() -> None:
    options = SamplingOptions(temperature=2.0, min_p=0.45, seed=5)
    counts = frequencies(options, [0.1, 0.4, 0.3, 0.2], 1500)
    assert [count > 0 for count in counts] == [True] * 4


def test_a_tiny_top_p_still_keeps_the_best() -> None:
    row = a_row(top_p=1e-9)
    logits = logits_of(1)
    assert sample_tokens(logits, [row]) == logits.argmax(-1).tolist()

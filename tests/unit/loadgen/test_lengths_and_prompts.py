"""Prompts have exactly the tokens asked for, and share prefixes exactly as the trace says."""

from itertools import islice

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from loadgen.lengths import LengthLimits, Lengths, drawn_from, fixed, uniform
from loadgen.prompts import TokenPrompts, TokenRange, text_of
from loadgen.traces.requests import TraceRequest
from loadgen.workload import Workload, joined, token_id_prompts

IDS = TokenRange(token_id_min=16, token_id_max=2047)


def lengths(prompt_tokens: int, output_tokens: int) -> Lengths:
    return Lengths(prompt_tokens=prompt_tokens, output_tokens=output_tokens)


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 100])
def test_a_prompt_of_ids_has_exactly_its_tokens(tokens: int) -> None:
    prompt = TokenPrompts(Rng(1), IDS, block_tokens=8).make("a", tokens=tokens, block_ids=(4, 5))
    assert len(prompt) == tokens
    assert all(16 <= token_id <= 2047 for token_id in prompt)


def test_prompts_share_exactly_the_blocks_that_they_have_in_common() -> None:
    prompts = TokenPrompts(Rng(1), IDS, block_tokens=8)
    one = prompts.make("one", tokens=30, block_ids=(1, 2, 3, 4))
    other = prompts.make("other", tokens=30, block_ids=(1, 2, 9, 10))
    assert one[:16] == other[:16]
    assert one[16:24] != other[16:24]


def test_a_partial_last_block_is_the_beginning_of_the_whole_one() -> None:
    prompts = TokenPrompts(Rng(1), IDS, block_tokens=8)
    assert (
        prompts.make("a", tokens=12, block_ids=(1, 2))
        == (prompts.make("b", tokens=16, block_ids=(1, 2))[:12])
    )


def test_prompts_without_blocks_share_nothing() -> None:
    prompts = TokenPrompts(Rng(1), IDS)
    assert prompts.make("a", tokens=50)[:3] != prompts.make("b", tokens=50)[:3]


@pytest.mark.parametrize("tokens", [1, 2, 13, 200])
def test_a_text_has_exactly_its_tokens_by_the_counter(tokens: int) -> None:
    def count(text: str) -> int:
        """Tokens of at most three letters."""
        return sum(-(-len(word) // 3) for word in text.split())

    assert count(text_of(Rng(5), tokens=tokens, count_tokens=count)) == tokens


def test_a_length_that_no_text_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="exactly 7 tokens"):
        text_of(Rng(5), tokens=7, count_tokens=lambda text: 2 * len(text.split()))


def test_limits_divide_first_and_cut_then() -> None:
    limits = LengthLimits(divisor=32, prompt_tokens_max=100, output_tokens_max=10)
    assert limits.fit(lengths(40_160, 6)) == lengths(100, 1)
    assert limits.fit(lengths(33, 64)) == lengths(2, 2)
    assert limits.fit(lengths(0, 1)) == lengths(0, 1)


def test_lengths_are_drawn_as_rows_never_mixed() -> None:
    table = [lengths(1, 10), lengths(2, 20), lengths(3, 30)]
    drawn = list(islice(drawn_from(Rng(1), table), 300))
    assert set(drawn) == set(table)


def test_uniform_lengths_reach_both_ends() -> None:
    drawn = list(islice(uniform(Rng(1), least=lengths(1, 1), most=lengths(3, 2)), 200))
    assert {one.prompt_tokens for one in drawn} == {1, 2, 3}
    assert {one.output_tokens for one in drawn} == {1, 2}


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="between 0"):
        lengths(-1, 0)
    with pytest.raises(ConfigError, match="empty"):
        next(drawn_from(Rng(1), []))
    with pytest.raises(ConfigError, match="least"):
        next(uniform(Rng(1), least=lengths(2, 1), most=lengths(1, 1)))
    with pytest.raises(ConfigError, match="token ids"):
        TokenRange(token_id_min=5, token_id_max=5)


def a_workload(**limits: int) -> Workload:
    maker = token_id_prompts(TokenPrompts(Rng(1), IDS))
    return Workload(rng=Rng(2), make_prompt=maker, limits=LengthLimits(**limits))


def test_requests_that_failed_when_recorded_are_skipped_and_counted() -> None:
    workload = a_workload(prompt_tokens_max=50)
    recorded = [
        TraceRequest(arrival_ns=at, lengths=lengths(*sizes))
        for at, sizes in enumerate([(20, 5), (20, 0), (90, 5), (0, 3)])
    ]
    made = list(workload.requests(recorded))
    assert [(one.index, one.arrival_ns, len(one.prompt)) for one in made] == [
        (0, 0, 20),
        (1, 2, 50),
    ]
    assert workload.tally.requests_skipped == 2
    assert workload.tally.requests_shortened == 1


def test_a_workload_is_the_same_for_the_same_seed_and_made_lazily() -> None:
    def first() -> list[object]:
        recorded = joined(iter(range(10**9)), fixed(lengths(8, 4)))
        return list(islice(a_workload().requests(recorded), 3))

    assert first() == first()

"""What a step may still take, and the batch that is worth waiting for."""

import pytest

from libs.engine.scheduling.step_budget import StepBudget
from libs.engine.scheduling.step_timing import best_tokens
from libs.policy.latency_model import LatencyModel

MODEL = LatencyModel(
    step_ns=100, row_ns=10, pair_prefilled_ns=1, token_attended_ns=1, sequence_ns=0
)


def a_budget(*, tokens: int = 100) -> StepBudget:
    return StepBudget(tokens=tokens, predict_ns=MODEL.predict_ns)


def test_without_a_bound_on_time_only_tokens_count() -> None:
    budget = a_budget(tokens=10)
    budget.take_decode(tokens_before=1_000_000)
    assert budget.prefill_tokens(50, tokens_before=0) == 9
    budget.take_prefill(9, tokens_before=0)
    assert budget.tokens_left == 0
    assert budget.prefill_tokens(1, tokens_before=0) == 0


@pytest.mark.parametrize("time_ns_max", [100, 110, 111, 200, 555, 1_000, 5_000])
@pytest.mark.parametrize("tokens_before", [0, 7, 40])
def test_a_chunk_is_the_longest_that_is_in_time(time_ns_max: int, tokens_before: int) -> None:
    budget = a_budget()
    budget.take_decode(tokens_before=3)
    budget.bound(time_ns_max=time_ns_max)
    chosen = budget.prefill_tokens(60, tokens_before=tokens_before)

    def time_ns(tokens: int) -> int:
        return MODEL.predict_ns(
            budget.work.with_prefill(tokens=tokens, tokens_before=tokens_before)
        )

    assert chosen == 0 or time_ns(chosen) <= time_ns_max
    assert chosen == 60 or time_ns(chosen + 1) > time_ns_max


def test_decodes_fit_together_or_are_tried_one_by_one() -> None:
    budget = a_budget()
    budget.bound(time_ns_max=150)
    assert budget.fits_decodes([0, 0, 0, 0, 0])
    assert not budget.fits_decodes([0, 0, 0, 0, 0, 0])
    assert not budget.fits_decodes([60])
    assert not a_budget(tokens=2).fits_decodes([0, 0, 0])


def test_the_floor_is_granted_whatever_is_predicted() -> None:
    budget = a_budget()
    budget.bound(time_ns_max=0, tokens_floor=4)
    assert budget.prefill_tokens(60, tokens_before=0) == 4
    budget.take_prefill(3, tokens_before=0)
    assert budget.fits_decodes([9])
    budget.take_decode(tokens_before=9)
    assert not budget.fits_decodes([9])


def test_the_work_is_what_was_taken() -> None:
    budget = a_budget()
    budget.take_decode(tokens_before=5)
    budget.take_prefill(4, tokens_before=6)
    work = budget.work
    assert (work.rows, work.sequences, work.tokens_attended) == (5, 2, 5)
    assert work.pairs_prefilled == 4 * (6 + 2)


def test_the_best_batch_is_the_largest_that_comes_close_to_the_best_rate() -> None:
    flat = LatencyModel(
        step_ns=0, row_ns=10, pair_prefilled_ns=0, token_attended_ns=0, sequence_ns=0
    )
    fixed = LatencyModel(
        step_ns=1_000, row_ns=10, pair_prefilled_ns=0, token_attended_ns=0, sequence_ns=0
    )
    bent = LatencyModel(
        step_ns=100,
        row_ns=10,
        pair_prefilled_ns=0,
        token_attended_ns=0,
        sequence_ns=0,
        row_past_knee_ns=40,
        knee_rows=64,
    )
    assert best_tokens(flat, tokens_max=500) == 500
    assert best_tokens(fixed, tokens_max=500) == 500
    assert best_tokens(bent, tokens_max=500) == 64

"""Timing an engine: plans that a runner accepts, and a model found from what they took."""

import pytest

from libs.engine.scheduler import SchedulerOptions
from libs.engine.simulated_runner import SimulatedRunner
from libs.engine.step_shapes import StepPlans, StepShape, held_out_shapes, shapes_to_fit
from libs.engine.step_times import ROUNDS_MIN, StepTimes, TimingOptions, measure_step_times
from libs.engine.steps import StepPlan, StepResult
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from libs.policy.latency_model import LatencyModel, StepWork

BOUNDS = SchedulerOptions(
    step_tokens_max=128,
    sequences_max=16,
    block_tokens=16,
    blocks_total=64,
    context_tokens_max=512,
    eos_token_ids=frozenset(),
)
TRUE = LatencyModel(
    step_ns=5e6, row_ns=2e5, pair_prefilled_ns=300.0, token_attended_ns=900.0, sequence_ns=1e5
)


def work_of(plan: StepPlan) -> StepWork:
    work = StepWork()
    for entry in plan.entries:
        if len(entry.token_ids) == 1:
            work = work.with_decode(tokens_before=entry.start_position)
        else:
            work = work.with_prefill(
                tokens=len(entry.token_ids), tokens_before=entry.start_position
            )
    return work


class TimedRunner:
    """A simulated engine whose steps take what the true model says, now and then ten times that."""

    def __init__(self, *, disturbed_share: float = 0.0) -> None:
        self.now_ns = 0
        self.steps = 0
        self._rng = Rng(3).child("disturbance")
        self._disturbed_share = disturbed_share
        self._runner = SimulatedRunner(vocabulary_size=100, eos_token_ids=frozenset())

    def run(self, plan: StepPlan) -> StepResult:
        factor = 10 if self._rng.random() < self._disturbed_share else 1
        self.now_ns += factor * TRUE.predict_ns(work_of(plan))
        self.steps += 1
        return self._runner.run(plan)


def measure(runner: TimedRunner, *, budget_ns: int = 5 * NS_PER_S) -> StepTimes:
    return measure_step_times(
        runner,
        bounds=BOUNDS,
        vocabulary_size=100,
        now_ns=lambda: runner.now_ns,
        tell=lambda _: None,
        options=TimingOptions(budget_ns=budget_ns),
    )


def test_the_model_of_an_engine_is_found_by_running_it() -> None:
    times = measure(TimedRunner())
    assert times.error < 0.001
    probe = StepWork().with_prefill(tokens=100, tokens_before=200)
    assert times.model.predict_ns(probe) == pytest.approx(TRUE.predict_ns(probe), rel=0.01)


def test_disturbed_steps_do_not_reach_the_model() -> None:
    times = measure(TimedRunner(disturbed_share=0.1), budget_ns=40 * NS_PER_S)
    assert times.error < 0.01


def test_a_slow_engine_fills_less_of_the_pool_and_still_gets_its_rounds() -> None:
    runner = TimedRunner()
    times = measure(runner, budget_ns=NS_PER_S // 10)
    assert times.pool_tokens < measure(TimedRunner()).pool_tokens
    assert times.rounds == ROUNDS_MIN


def test_the_time_that_is_given_is_used_and_not_exceeded() -> None:
    runner = TimedRunner()
    times = measure(runner)
    assert times.rounds > ROUNDS_MIN
    assert 0.5 * 5 * NS_PER_S < runner.now_ns < 5 * NS_PER_S


def test_every_shape_is_planned_as_its_work_says() -> None:
    plans = StepPlans(BOUNDS, vocabulary_size=100, rng=Rng(1))
    shapes = shapes_to_fit(BOUNDS, pool_tokens=1024)
    assert len(shapes) > 20
    for shape in [*shapes, *held_out_shapes(BOUNDS, pool_tokens=1024, rng=Rng(2))]:
        plan = plans.step(shape, pool_tokens=1024)
        assert work_of(plan) == shape.work
        for entry in plan.entries:
            tokens = entry.start_position + len(entry.token_ids)
            assert len(set(entry.block_table)) == len(entry.block_table) == -(-tokens // 16)
            assert max(entry.block_table) < 64


def test_steps_stay_within_the_bounds_of_the_engine() -> None:
    for shape in [
        *shapes_to_fit(BOUNDS, pool_tokens=1024),
        *held_out_shapes(BOUNDS, pool_tokens=1024, rng=Rng(2)),
    ]:
        assert shape.work.rows <= BOUNDS.step_tokens_max
        assert shape.work.sequences <= BOUNDS.sequences_max
        assert shape.longest_tokens <= BOUNDS.context_tokens_max


def test_what_the_fit_sees_and_what_judges_it_are_not_the_same_steps() -> None:
    fitted = {shape.work for shape in shapes_to_fit(BOUNDS, pool_tokens=1024)}
    judging = {s.work for s in held_out_shapes(BOUNDS, pool_tokens=1024, rng=Rng(7))}
    assert len(judging - fitted) >= 10


def test_the_pool_is_written_block_by_block_before_it_is_read() -> None:
    plans = StepPlans(BOUNDS, vocabulary_size=100, rng=Rng(1))
    written: list[int] = []
    for shape, plan in plans.filling(pool_tokens=1000):
        written += plan.entries[0].block_table
        assert shape.chunk_tokens == len(plan.entries[0].token_ids) <= BOUNDS.step_tokens_max
    assert written == list(range(1000 // 16))


def test_a_shape_without_a_chunk_is_decodes_alone() -> None:
    assert StepShape(decodes=3, decode_tokens_before=7).work == StepWork(
        rows=3, tokens_attended=21, sequences=3
    )

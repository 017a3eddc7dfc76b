"""The engine without a model: its tokens are known in advance, and it checks what it is given."""

from dataclasses import replace

import pytest

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.simulated_runner import SimulatedRunner, StepTimeModel, simulated_tokens
from libs.engine.steps import StepPlan
from libs.kernel.errors import InvariantViolation

EOS = frozenset({0})
OPTIONS = SchedulerOptions(
    step_tokens_max=8,
    sequences_max=4,
    block_tokens=4,
    blocks_total=16,
    context_tokens_max=40,
    eos_token_ids=EOS,
)


def a_request(**changes: object) -> SequenceRequest:
    request = SequenceRequest(
        sequence_id="a",
        prompt_token_ids=(1, 2, 3),
        sampling=SamplingOptions(temperature=1.0, seed=3),
        stop=StopOptions(max_tokens=20),
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def expected(request: SequenceRequest) -> tuple[int, ...]:
    return simulated_tokens(request, vocabulary_size=30, eos_token_ids=EOS, context_tokens_max=40)


def a_plan() -> StepPlan:
    scheduler = Scheduler(OPTIONS)
    scheduler.add(a_request(), now_ns=0)
    plan = scheduler.schedule(now_ns=0)
    assert plan is not None
    return plan


def a_runner() -> SimulatedRunner:
    return SimulatedRunner(vocabulary_size=30, eos_token_ids=EOS)


@pytest.mark.parametrize("seed", range(8))
def test_a_run_brings_forth_the_tokens_known_in_advance(seed: int) -> None:
    request = a_request(sampling=SamplingOptions(temperature=1.0, seed=seed))
    scheduler, runner = Scheduler(OPTIONS), a_runner()
    scheduler.add(request, now_ns=0)
    tokens = []
    while (plan := scheduler.schedule(now_ns=0)) is not None:
        tokens += [token.token_id for token in scheduler.account(runner.run(plan), now_ns=0)]
    assert tuple(tokens) == expected(request)


def test_prompt_and_seed_change_the_tokens_but_greedy_ignores_the_seed() -> None:
    request = a_request()
    other_seed = a_request(sampling=SamplingOptions(temperature=1.0, seed=4))
    greedy = [a_request(sampling=SamplingOptions(temperature=0.0, seed=seed)) for seed in (3, 4)]
    assert expected(request) != expected(other_seed)
    assert expected(request) != expected(a_request(prompt_token_ids=(1, 2, 4)))
    assert expected(greedy[0]) == expected(greedy[1])


def test_the_context_ends_a_sequence_as_it_does_in_the_scheduler() -> None:
    stop = StopOptions(max_tokens=1_000, ignore_eos=True)
    assert len(expected(a_request(stop=stop))) == OPTIONS.context_tokens_max - 3


def test_a_plan_that_breaks_its_promises_is_refused() -> None:
    runner = a_runner()
    plan = a_plan()
    runner.run(plan)
    with pytest.raises(InvariantViolation, match="follows"):
        runner.run(replace(plan, step_id=5))
    with pytest.raises(InvariantViolation, match="open twice"):
        runner.run(replace(plan, step_id=1))
    with pytest.raises(InvariantViolation, match="was not open"):
        runner.run(replace(plan, step_id=2, closed=("b",)))


def test_a_step_takes_longer_with_more_to_compute() -> None:
    model = StepTimeModel(step_ns=1_000, prefill_token_ns=10, decode_sequence_ns=100)
    assert model.duration_ns(a_plan()) == 1_030

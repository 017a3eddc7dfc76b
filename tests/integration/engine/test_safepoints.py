"""Steps that are given up at safepoints, at any time and by any rank, change no answer."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Protocol

import pytest
from transformers import Gemma2Config, PretrainedConfig

from libs.engine.batch_run import run_to_completion
from libs.engine.loading import EngineOptions, load_engine
from libs.engine.requests import SequenceRequest
from libs.engine.runner import ModelRunner
from libs.engine.safepoints import StepYield
from libs.engine.scheduler import Scheduler
from libs.engine.steps import StepPlan, StepResult, TokenEmitted
from libs.kernel.units import NS_PER_S
from tests.integration.engine.replica_fleet import Fleet, Replica, form_replica
from tests.integration.engine.replica_member import asking_to_yield
from tests.integration.engine.test_replica_answers import ECHO, REQUESTS, STEP_TOKENS

LAYERS_BETWEEN = 1
STEP_S = 0.004
"""About what a step takes here; signals fall anywhere in it, or behind it."""
RETRIES_MAX = 8
"""A step that was given up so often is left alone, so that each test ends."""
Answers = dict[str, list[TokenEmitted]]


class Yielding(Protocol):
    """Runs a plan, which may be given up."""

    def __call__(self, plan: StepPlan) -> StepResult: ...


class Retrying:
    """A runner whose steps are asked to yield and, if they did, planned anew under a new number.

    It stands between scheduler and runner, so that one scheduler serves all tests alike.
    """

    def __init__(self, run: Yielding) -> None:
        self._run = run
        self._step_id = -1
        self.steps_given_up = 0

    def run(self, plan: StepPlan) -> StepResult:
        attempt = replace(plan, layers_between_safepoints=LAYERS_BETWEEN)
        for retries in range(RETRIES_MAX + 1):
            self._step_id += 1
            is_last = retries == RETRIES_MAX
            result = self._run(
                replace(
                    attempt,
                    step_id=self._step_id,
                    layers_between_safepoints=None if is_last else LAYERS_BETWEEN,
                )
            )
            assert result.step_id == self._step_id
            if not result.is_yielded:
                return replace(result, step_id=plan.step_id)
            assert result.sampled == ()
            self.steps_given_up += 1
            attempt = replace(attempt, opened=(), closed=())
        raise AssertionError("a step without safepoints was given up")


def undisturbed(folder: Path, requests: list[SequenceRequest] | None = None) -> Answers:
    engine = load_engine(str(folder), options=EngineOptions(dtype="float32"))
    scheduler = Scheduler(replace(engine.scheduler_options, step_tokens_max=64))
    return run_to_completion(scheduler, engine.runner, requests or REQUESTS)


def disturbed(
    folder: Path, requests: list[SequenceRequest] | None = None
) -> tuple[Answers, Retrying, ModelRunner]:
    """Answer with every step asked to yield: before it runs, in its middle, or not at all."""
    engine = load_engine(str(folder), options=EngineOptions(dtype="float32"))
    rng = Random(5)

    def run(plan: StepPlan) -> StepResult:
        kind = rng.choice(["before", "within", "within", "never"])
        if kind == "before":
            engine.runner.request_yield(plan.step_id)
        after_s = rng.uniform(0, STEP_S) if kind == "within" else None
        with asking_to_yield(engine.runner, plan.step_id, after_s=after_s):
            return engine.runner.run(plan)

    retrying = Retrying(run)
    scheduler = Scheduler(replace(engine.scheduler_options, step_tokens_max=64))
    answers = run_to_completion(scheduler, retrying, requests or REQUESTS)
    return answers, retrying, engine.runner


def test_answers_schemas_and_scores_are_the_same_whenever_steps_are_given_up(
    llama_folder: Path,
) -> None:
    expected = undisturbed(llama_folder)
    answers, retrying, runner = disturbed(llama_folder)
    assert answers == expected
    assert retrying.steps_given_up > 10
    assert runner.safepoints.counters.yields == retrying.steps_given_up


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=384,
            max_position_embeddings=512,
        )
    ],
)
def test_a_model_of_transformers_gives_up_between_its_layers_too(
    save_model: Callable[[PretrainedConfig], Path], config: PretrainedConfig
) -> None:
    folder = save_model(config)
    requests = [ECHO, REQUESTS[0]]
    expected = undisturbed(folder, requests)
    answers, retrying, _ = disturbed(folder, requests)
    assert answers == expected
    assert retrying.steps_given_up > 5


def test_every_step_that_yields_stops_at_the_first_safepoint_behind_its_signal(
    llama_folder: Path,
) -> None:
    engine = load_engine(str(llama_folder), options=EngineOptions(dtype="float32"))
    log: list[StepYield] = []
    engine.runner.safepoints.on_yield = log.append
    rng = Random(11)
    step_s = STEP_S

    def run(plan: StepPlan) -> StepResult:
        nonlocal step_s
        after_s = rng.uniform(0, step_s)
        started_at = time.monotonic()
        with asking_to_yield(engine.runner, plan.step_id, after_s=after_s):
            result = engine.runner.run(plan)
            step_s = time.monotonic() - started_at
        return result

    run_to_completion(Scheduler(engine.scheduler_options), Retrying(run), REQUESTS)
    assert len(log) > 5
    for line in log:
        assert line.requested_at_ns is not None
        assert line.requested_at_ns <= line.stopped_at_ns
        # A signal that was there at a safepoint before would have stopped the step at that one.
        assert line.checked_at_ns is None or line.checked_at_ns < line.requested_at_ns


def of_replica(fleet: Fleet, folder: Path, *, stages: int, shards: int) -> Replica:
    return form_replica(
        fleet,
        folder,
        stages=stages,
        shards=shards,
        step_tokens_max=STEP_TOKENS,
        sequences_max=8,
        timeout_ns=20 * NS_PER_S,
    )


@pytest.mark.parametrize(("stages", "shards"), [(1, 2), (2, 1), (2, 2)])
def test_all_ranks_give_up_together_whichever_of_them_is_asked_and_when(
    fleet: Fleet, llama_folder: Path, stages: int, shards: int
) -> None:
    """A rank that took another branch would wait until its group times out, and fail the step."""
    expected = of_replica(fleet, llama_folder, stages=stages, shards=shards).answers(REQUESTS)
    replica = of_replica(fleet, llama_folder, stages=stages, shards=shards)
    rng = Random(stages * 10 + shards)

    def run(plan: StepPlan) -> StepResult:
        after_s = [
            rng.uniform(0, 2 * STEP_S) if rng.random() < 0.4 else None
            for _ in (replica.lead, *replica.members)
        ]
        replica.tell(plan, yield_after_s=after_s[1:])
        with asking_to_yield(replica.lead.runner, plan.step_id, after_s=after_s[0]):
            result = replica.lead.runner.run(plan)
        assert result is not None
        return result

    retrying = Retrying(run)
    assert run_to_completion(replica.scheduler, retrying, REQUESTS) == expected
    assert retrying.steps_given_up > 5


@pytest.mark.parametrize(("stages", "shards"), [(1, 2), (2, 1)])
def test_safepoints_at_which_nobody_stops_change_no_bit(
    fleet: Fleet, llama_folder: Path, stages: int, shards: int
) -> None:
    """The answers hold log probabilities of every token, which are compared exactly."""
    replicas = [of_replica(fleet, llama_folder, stages=stages, shards=shards)]
    expected = replicas[0].answers([ECHO])
    replica = of_replica(fleet, llama_folder, stages=stages, shards=shards)

    def run(plan: StepPlan) -> StepResult:
        replica.tell(plan, yield_after_s=[None] * len(replica.members))
        result = replica.lead.runner.run(plan)
        assert result is not None
        return result

    assert run_to_completion(replica.scheduler, Retrying(run), [ECHO]) == expected
    if shards > 1:
        assert replica.lead.runner.safepoints.counters.checks > 0

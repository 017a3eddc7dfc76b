"""Both tides on one worker: who is planned, what is given up, what the reports say."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from libs.contracts.reports import WorkerReport
from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from libs.engine.scheduling.tally import CoserveTally
from libs.kernel.units import NS_PER_MS
from libs.policy.latency_model import LatencyModel
from services.gpu_worker.commands import RunStep, YieldStep
from services.gpu_worker.events import StepFailed, StepFinished

WorkerBuilder = Callable[..., Any]
TIGHT = CoserveOptions(
    policy=Coserve.CONSERVE,
    ttft_slo_ns=80 * NS_PER_MS,
    latency=LatencyModel(
        step_ns=0, row_ns=NS_PER_MS, pair_prefilled_ns=0, token_attended_ns=0, sequence_ns=0
    ),
)


@pytest.fixture
def worker(a_worker: WorkerBuilder) -> Any:
    """A worker whose steps take a millisecond per token and can be given up."""
    return a_worker(layers=16, coserve=TIGHT)


def begin_offline_step(worker: Any) -> RunStep:
    """Let a step of 64 offline tokens begin."""
    worker.start("offline", priority=-10, tenant="t", prompt_token_ids=tuple(range(1, 101)))
    step: RunStep = worker.step
    assert step.plan.layers_between_safepoints == 4
    return step


def test_a_step_is_given_up_for_a_session_that_would_be_late(worker: Any) -> None:
    step = begin_offline_step(worker)
    commands = worker.starting("online", prompt_token_ids=tuple(range(200, 230)))
    assert [c for c in commands if isinstance(c, YieldStep)] == [
        YieldStep(replica_id=step.replica_id, step_id=step.plan.step_id, cause_id="online")
    ]
    worker.runner.request_yield(step.plan.step_id)
    worker.finish_step()
    assert worker.step.plan.entries[0].sequence_id == "online#1"
    assert worker.core.tally.steps_yielded == 1


def test_a_step_runs_on_for_a_session_that_can_wait(worker: Any) -> None:
    begin_offline_step(worker)
    worker.now_ns += 62 * NS_PER_MS
    commands = worker.starting("online", prompt_token_ids=(1, 2, 3))
    assert not any(isinstance(command, YieldStep) for command in commands)


def test_a_step_runs_on_for_another_offline_session(worker: Any) -> None:
    begin_offline_step(worker)
    commands = worker.starting("more", priority=-5, prompt_token_ids=tuple(range(200, 260)))
    assert not any(isinstance(command, YieldStep) for command in commands)


def test_a_yield_that_comes_too_late_for_its_step_changes_nothing(worker: Any) -> None:
    step = begin_offline_step(worker)
    worker.starting("online", prompt_token_ids=tuple(range(200, 230)))
    worker.finish_step()
    worker.runner.request_yield(step.plan.step_id)
    worker.finish_steps(3)
    assert worker.core.tally.steps_yielded == 0
    assert worker.core.tally.tokens_offline >= 64


def test_a_step_that_yielded_is_no_measure_of_how_long_steps_take(worker: Any) -> None:
    step = begin_offline_step(worker)
    worker.starting("online", prompt_token_ids=tuple(range(200, 230)))
    worker.runner.request_yield(step.plan.step_id)
    worker.finish_step()
    assert worker.report().steps == 0
    worker.finish_step()
    assert worker.report().steps == 1


def test_nobody_is_asked_to_yield_after_the_engine_failed(worker: Any) -> None:
    step = begin_offline_step(worker)
    worker.handle(
        StepFailed(
            op_id=step.op_id, replica_id=step.replica_id, reason="boom", cause_id=step.cause_id
        )
    )
    assert worker.starting("online", prompt_token_ids=tuple(range(200, 230))) == []


def test_the_report_says_what_the_tides_brought(worker: Any) -> None:
    begin_offline_step(worker)
    worker.start("waiting", priority=-10, prompt_token_ids=tuple(range(1, 60)))
    report = worker.report()
    assert (report.coserve, report.offline_running, report.offline_waiting) == ("conserve", 1, 1)
    assert report.offline_tokens_waiting == report.tokens_waiting == 100 + 59
    worker.finish_step()
    report = worker.report()
    assert (report.steps_offline, report.tokens_offline) == (1, 64)
    assert (report.blocks_offline, report.blocks_offline_stored) == (16, 0)


def test_every_counter_of_the_tally_is_in_the_report() -> None:
    missing = {field.name for field in fields(CoserveTally)} - WorkerReport.model_fields.keys()
    assert not missing


def test_a_worker_with_offline_sessions_that_its_policy_never_serves_is_at_rest(
    a_worker: WorkerBuilder,
) -> None:
    worker = a_worker(coserve=CoserveOptions(policy=Coserve.ONLINE_ONLY))
    worker.start("offline", priority=-10)
    assert worker.step is None
    worker.start("online", max_tokens=1)
    worker.finish_step()
    assert worker.step is None
    assert worker.report().offline_waiting == 1


def test_the_time_of_tokens_is_judged_by_the_workers_clock(worker: Any) -> None:
    worker.start("online", max_tokens=4)
    for duration_ms in (10, 90, 110):
        step = worker.step
        worker.step = None
        worker.now_ns += duration_ms * NS_PER_MS
        worker.handle(
            StepFinished(
                op_id=step.op_id,
                result=worker.runner.run(step.plan),
                duration_ns=NS_PER_MS,
                cause_id=step.cause_id,
            )
        )
    tally = worker.core.tally
    assert (tally.ttft_met, tally.ttft_missed, tally.tbt_met, tally.tbt_missed) == (1, 0, 1, 1)

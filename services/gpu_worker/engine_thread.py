"""The one thread on which the engine steps, so that no step ever delays a heartbeat."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from libs.engine.steps import StepPlan, StepResult
from libs.runtime.clock import Clock
from services.gpu_worker.commands import RunStep
from services.gpu_worker.events import StepFailed, StepFinished

_log = structlog.get_logger(__name__)


class StepRunner(Protocol):
    """An engine as the worker sees it; synchronous, called from one thread only."""

    def run(self, plan: StepPlan) -> StepResult:
        """Execute one plan. Whatever it raises means that the engine is broken."""
        ...


class EngineThread:
    """Runs steps one after another on the executor's only thread, the one that loaded the model:
    torch keeps settings per thread."""

    def __init__(self, runner: StepRunner, clock: Clock, executor: ThreadPoolExecutor) -> None:
        self._runner = runner
        self._clock = clock
        self._executor = executor

    async def run(self, command: RunStep) -> StepFinished:
        """Run one step; the time it waited for the thread does not count."""
        loop = asyncio.get_running_loop()
        result, duration_ns = await loop.run_in_executor(
            self._executor, _timed, self._runner, command.plan, self._clock.now_ns
        )
        return StepFinished(
            op_id=command.op_id,
            result=result,
            duration_ns=duration_ns,
            cause_id=command.cause_id,
        )


def step_failed(command: RunStep, error: Exception) -> StepFailed:
    """Turn what the engine raised, or that it hangs, into the outcome of the step."""
    _log.error("engine_failed", op_id=command.op_id, exc_info=error)
    reason = f"{type(error).__name__}: {error}"
    return StepFailed(op_id=command.op_id, reason=reason, cause_id=command.cause_id)


def _timed(runner: StepRunner, plan: StepPlan, now_ns: Callable[[], int]) -> tuple[StepResult, int]:
    started_at_ns = now_ns()
    result = runner.run(plan)
    return result, now_ns() - started_at_ns

"""The one thread on which the engine steps, so that no step ever delays a heartbeat."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import structlog

from libs.engine.steps import StepPlan, StepResult
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.clock import Clock
from services.gpu_worker.commands import RunStep, YieldStep
from services.gpu_worker.events import StepFailed, StepFinished

ResultT = TypeVar("ResultT")

_log = structlog.get_logger(__name__)


class StepRunner(Protocol):
    """An engine as the worker sees it; synchronous, called from one thread only, save for
    `request_yield`."""

    def run(self, plan: StepPlan) -> StepResult | None:
        """Execute one plan; None from a member, which does not sample.

        Whatever it raises means that the engine is broken, or a peer of it lost.
        """

    def request_yield(self, step_id: int) -> None:
        """Have this step, and no other, end at its next safepoint. From any thread."""


class EngineThread:
    """Runs what touches the engine, one after another, on the executor's only thread, the one that
    loaded the model: torch keeps settings per thread."""

    def __init__(self, clock: Clock, executor: ThreadPoolExecutor) -> None:
        self._clock = clock
        self._executor = executor
        self._runners: dict[str, StepRunner] = {}

    def add(self, replica_id: str, runner: StepRunner) -> None:
        """Let steps of this replica be run by this runner."""
        self._runners[replica_id] = runner

    def remove(self, replica_id: str) -> None:
        """Run no more steps of this replica."""
        self._runners.pop(replica_id, None)

    def request_yield(self, command: YieldStep) -> None:
        """Ask a step that runs, or waits for the thread, to be given up. From any thread; a step
        that is over, or of a replica that is gone, needs no asking."""
        runner = self._runners.get(command.replica_id)
        if runner is not None:
            runner.request_yield(command.step_id)

    async def call(self, work: Callable[[], ResultT]) -> ResultT:
        """Do something between two steps."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def call_to_its_end(self, work: Callable[[], ResultT]) -> ResultT:
        """As `call`, but when this raises, cancelled or not, nothing of the work runs any more:
        for work on memory that the caller takes back afterwards."""
        running = asyncio.ensure_future(self.call(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise

    async def run(self, command: RunStep) -> StepFinished:
        """Run one step; the time it waited for the thread does not count.

        Raises: Unavailable if the replica was removed meanwhile.
        """
        result, duration_ns = await self.call(lambda: self._timed(command))
        return StepFinished(
            op_id=command.op_id,
            result=result,
            duration_ns=duration_ns,
            cause_id=command.cause_id,
        )

    def _timed(self, command: RunStep) -> tuple[StepResult | None, int]:
        runner = self._runners.get(command.replica_id)
        if runner is None:
            raise Unavailable(f"{command.replica_id} was dropped", retry_after_ns=NS_PER_S)
        started_at_ns = self._clock.now_ns()
        result = runner.run(command.plan)
        return result, self._clock.now_ns() - started_at_ns


def step_failed(command: RunStep, error: Exception) -> StepFailed:
    """Turn what the engine raised, or that it hangs, into the outcome of the step."""
    _log.error("engine_failed", op_id=command.op_id, cause_id=command.cause_id, exc_info=error)
    reason = f"{type(error).__name__}: {error}"
    return StepFailed(
        op_id=command.op_id,
        replica_id=command.replica_id,
        reason=reason,
        cause_id=command.cause_id,
    )

"""Runs a batch of sequences to its end on the calling thread: benchmarks, tests, first steps."""

from collections.abc import Sequence
from typing import Protocol

from libs.engine.requests import SequenceRequest
from libs.engine.scheduler import Scheduler
from libs.engine.steps import StepPlan, StepResult, TokenEmitted


class PlanRunner(Protocol):
    """Whatever carries out plans."""

    def run(self, plan: StepPlan) -> StepResult:
        """Carry out one plan."""


def run_to_completion(
    scheduler: Scheduler, runner: PlanRunner, requests: Sequence[SequenceRequest]
) -> dict[str, list[TokenEmitted]]:
    """Return the tokens of every sequence, by its id; all arrive together. Time stands still."""
    emitted: dict[str, list[TokenEmitted]] = {request.sequence_id: [] for request in requests}
    for request in requests:
        scheduler.add(request, now_ns=0)
    while (plan := scheduler.schedule(now_ns=0)) is not None:
        for token in scheduler.account(runner.run(plan), now_ns=0):
            emitted[token.sequence_id].append(token)
    return emitted

"""What a worker core asks of the world. Only RunStep has an outcome: StepFinished or StepFailed.

Everything sent may be lost: tokens are sent again until acknowledged, answers are asked for again,
and a report is replaced by the next.
"""

from dataclasses import dataclass
from typing import Final

from libs.contracts.reports import WorkerReport
from libs.contracts.sessions import ToRouter
from libs.contracts.token_step import TokenStep
from libs.engine.steps import StepPlan
from libs.kernel.core import SetTimer

EXIT_DRAINED: Final = 0
EXIT_ENGINE_FAILED: Final = 71
"""The engine raised in the middle of a step; a fresh process is the only sure state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """Run one engine step, on the engine's own thread. At most one is under way."""

    op_id: str
    plan: StepPlan
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTokens:
    """Publish to `router_tokens(router_id)`."""

    router_id: str
    step: TokenStep
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToRouter:
    """Publish to `router_control(router_id)`."""

    router_id: str
    message: ToRouter
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """Publish to `worker_report(worker_id)`."""

    report: WorkerReport
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopProcess:
    """Send what was commanded before, then end the process. The core ignores what comes after."""

    exit_code: int
    message: str
    cause_id: str


WorkerCommand = RunStep | SendTokens | SendToRouter | PublishReport | SetTimer | StopProcess

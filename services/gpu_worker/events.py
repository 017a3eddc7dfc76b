"""What happens to a worker. Each event carries `cause_id`: the request, step or signal behind."""

from dataclasses import dataclass

from libs.contracts.sessions import AcknowledgeTokens, EndSession, StartSession
from libs.engine.steps import StepResult
from libs.kernel.core import TimerFired


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted:
    """The model is loaded and warm; the worker may announce itself. Comes once, first."""

    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReceived:
    """A router asks to run a session."""

    message: StartSession
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgeReceived:
    """A router says what it has journaled."""

    message: AcknowledgeTokens
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndReceived:
    """A router asks to forget a session."""

    message: EndSession
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """The engine has run the step of RunStep with this op_id."""

    op_id: str
    result: StepResult
    duration_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:
    """The engine raised during the step of RunStep with this op_id; its KV is not to be trusted."""

    op_id: str
    reason: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested:
    """The process was told to end. A second one cuts the wait for running sessions short."""

    cause_id: str


WorkerEvent = (
    WorkerStarted
    | StartReceived
    | AcknowledgeReceived
    | EndReceived
    | StepFinished
    | StepFailed
    | TimerFired
    | DrainRequested
)

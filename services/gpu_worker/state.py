"""What the parts of the worker's core share: sessions, positions, and the commands to come."""

from dataclasses import dataclass, field

from libs.contracts.sessions import RefuseReason, SessionRefused
from libs.engine.scheduling.tally import CoserveTally
from libs.engine.steps import StepPlan
from libs.kernel.core import SetTimer
from services.gpu_worker.commands import PublishReport, SendToRouter, StopProcess, WorkerCommand
from services.gpu_worker.delivery import Delivery
from services.gpu_worker.node_life import NodeLife
from services.gpu_worker.options import WorkerOptions
from services.gpu_worker.positions import Positions, WorkerPosition
from services.gpu_worker.reporting import Reporting
from services.gpu_worker.sessions import HeldSession, SessionTable

REPORT_TIMER = "report"


@dataclass(slots=True, kw_only=True)
class WorkerCounters:
    """What happened since the process started, for metrics."""

    sessions_started: int = 0
    sessions_rebound: int = 0
    sessions_refused: int = 0
    sessions_abandoned: int = 0
    """Finished, and never acknowledged in all the time allowed."""
    sessions_released: int = 0
    """Sent on to another replica, their KV perhaps before them."""
    stale_dropped: int = 0
    """Messages of an earlier epoch."""
    replicas_broken: int = 0
    """Positions that lost a peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInFlight:
    """The step that a lead waits for."""

    op_id: str
    plan: StepPlan
    position: WorkerPosition


@dataclass(slots=True, kw_only=True)
class WorkerState:
    """The state of one worker. Only the core and its parts touch it, one event at a time."""

    options: WorkerOptions
    sessions: SessionTable
    delivery: Delivery
    reporting: Reporting
    tally: CoserveTally
    """Of all positions that this worker has led."""
    positions: Positions = field(default_factory=Positions)
    step: StepInFlight | None = None
    node_life: NodeLife = field(default_factory=NodeLife)
    is_draining: bool = False
    is_stopped: bool = False
    counters: WorkerCounters = field(default_factory=WorkerCounters)
    now_ns: int = 0
    """Time of the event being handled."""
    cause_id: str = ""
    """What provoked the event being handled."""
    commands: list[WorkerCommand] = field(default_factory=list)

    @property
    def is_refusing(self) -> bool:
        """Whether new sessions are refused because the process or its node is about to end."""
        return self.is_draining or self.is_stopped or self.node_life.is_evacuating

    def emit(self, *commands: WorkerCommand) -> None:
        """Add commands to what this event brings forth."""
        self.commands.extend(commands)

    def set_timer(self, key: str, after_ns: int) -> None:
        """Ask for a TimerFired."""
        self.emit(SetTimer(key=key, after_ns=after_ns, cause_id=self.cause_id))

    def report(self) -> None:
        """Publish the state of now; the next report follows an interval later."""
        report = self.reporting.next_report(
            position=self.positions.serving,
            sessions=self.sessions,
            tally=self.tally,
            is_draining=self.is_refusing,
            grace_left_ns=self.node_life.grace_left_ns(now_ns=self.now_ns),
        )
        self.emit(PublishReport(report=report, cause_id=self.cause_id))
        self.set_timer(REPORT_TIMER, self.options.report_interval_ns)

    def sessions_at(self, position: WorkerPosition) -> list[HeldSession]:
        """Return the unfinished sessions that this position runs, oldest first."""
        return [
            session
            for session in self.sessions
            if session.finish_reason is None and session.scheduler is position.scheduler
        ]

    def refuse(
        self,
        router_id: str,
        request_id: str,
        session_epoch: int,
        reason: RefuseReason,
        message: str = "",
        *,
        target_worker_id: str = "",
    ) -> None:
        """Tell a router that the session does not run here."""
        self.counters.sessions_refused += 1
        answer = SessionRefused(
            worker_id=self.options.worker_id,
            request_id=request_id,
            session_epoch=session_epoch,
            reason=reason,
            message=message,
            target_worker_id=target_worker_id,
        )
        self.emit(SendToRouter(router_id=router_id, message=answer, cause_id=self.cause_id))

    def send_away(
        self,
        session: HeldSession,
        reason: RefuseReason,
        message: str,
        *,
        target_worker_id: str = "",
    ) -> None:
        """Give up a held session, so that its router places it elsewhere."""
        self.refuse(
            session.router_id,
            session.request_id,
            session.session_epoch,
            reason,
            message,
            target_worker_id=target_worker_id,
        )
        self.forget(session)

    def forget(self, session: HeldSession) -> None:
        """Hold the session no more and free its KV."""
        if session.finish_reason is None:
            session.scheduler.abort(session.sequence_id)
        self.sessions.forget(session)

    def stop(self, exit_code: int, message: str) -> None:
        """End the process after what was commanded so far."""
        self.is_stopped = True
        self.emit(StopProcess(exit_code=exit_code, message=message, cause_id=self.cause_id))

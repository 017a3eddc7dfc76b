"""Decides what one worker does: which session it runs, when the engine steps, what it sends.

Theory of operation. One engine step is in flight at a time, and another as long as the scheduler
has work. What a step brings forth goes to the routers at once, is kept until they have journaled
it, and is sent again when they do not say so; so no lost message loses a token.

    StartSession --admitted--> held, running --last token--> held, finished --receipt--> forgotten
                                  |    ^                              |
                 later epoch      +----+ (KV and tokens stay)         |
                 EndSession, later epoch that does not fit, 60 s unacknowledged --> forgotten

Epochs fence: what is older than the epoch held or ended here is refused or dropped, and a session
forgotten in one epoch starts again only in a later one.
"""

from dataclasses import dataclass
from typing import assert_never

from libs.contracts.reports import WorkerReport
from libs.contracts.sessions import (
    AcknowledgeTokens,
    EndSession,
    RefuseReason,
    SessionRefused,
    SessionStarted,
    StartSession,
    TokenReceipt,
)
from libs.engine.scheduler import Scheduler
from libs.engine.steps import StepPlan
from libs.kernel.core import SetTimer, TimerFired, require
from services.gpu_worker.admission import refusal_of, sequence_of
from services.gpu_worker.commands import (
    EXIT_DRAINED,
    EXIT_ENGINE_FAILED,
    PublishReport,
    RunStep,
    SendToRouter,
    StopProcess,
    WorkerCommand,
)
from services.gpu_worker.delivery import Delivery
from services.gpu_worker.events import (
    AcknowledgeReceived,
    DrainRequested,
    EndReceived,
    StartReceived,
    StepFailed,
    StepFinished,
    WorkerEvent,
    WorkerStarted,
)
from services.gpu_worker.options import WorkerOptions
from services.gpu_worker.reporting import Reporting
from services.gpu_worker.sessions import HeldSession, SessionTable

REPORT_TIMER = "report"
RESEND_TIMER = "resend"
DRAIN_TIMER = "drain"
REPORTS_BEFORE_DRAINED = 2
"""A draining worker stays for as many reports, so that a router which has not heard of it yet gets
a refusal instead of silence."""


@dataclass(slots=True, kw_only=True)
class WorkerCounters:
    """What happened since the process started, for metrics."""

    sessions_started: int = 0
    sessions_rebound: int = 0
    sessions_refused: int = 0
    sessions_abandoned: int = 0
    """Finished, and never acknowledged in all the time allowed."""
    stale_dropped: int = 0
    """Messages of an earlier epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepInFlight:
    op_id: str
    plan: StepPlan


class WorkerCore:
    """The state of one worker process; see the module for how it works."""

    def __init__(self, options: WorkerOptions, scheduler: Scheduler) -> None:
        self._options = options
        self._scheduler = scheduler
        self._sessions = SessionTable(ended_epochs_max=options.ended_epochs_max)
        self._delivery = Delivery(options, self._sessions)
        self._reporting = Reporting(options, scheduler)
        self._step: _StepInFlight | None = None
        self._is_resend_armed = False
        self._is_draining = False
        self._is_stopped = False
        self._reports_draining = 0
        self._now_ns = 0
        self._cause_id = ""
        self._commands: list[WorkerCommand] = []
        self.counters = WorkerCounters()

    @property
    def tokens_resent(self) -> int:
        """Tokens sent again since the start, for metrics."""
        return self._delivery.tokens_resent

    @property
    def sessions_held(self) -> int:
        """Sessions running, waiting, or finished and not acknowledged."""
        return len(self._sessions)

    @property
    def is_draining(self) -> bool:
        """Whether new sessions are refused because the process is about to end."""
        return self._is_draining or self._is_stopped

    @property
    def report_latest(self) -> WorkerReport | None:
        """The report published last, for metrics."""
        return self._reporting.latest

    def handle(self, event: WorkerEvent, *, now_ns: int) -> list[WorkerCommand]:
        """Apply one event. After StopProcess nothing follows any more."""
        if self._is_stopped:
            return []
        self._now_ns = now_ns
        self._cause_id = event.cause_id
        self._commands = []
        self._apply(event)
        if not self._is_stopped:
            self._run_next_step()
            self._arm_resend()
        return self._commands

    def check_invariants(self) -> None:
        """Raise InvariantViolation if sessions, engine and timers contradict one another."""
        self._sessions.check_invariants()
        self._scheduler.check_invariants()
        if self._is_stopped:
            return
        require(len(self._sessions) <= self._options.sessions_max, "too many sessions are held")
        for session in self._sessions:
            require(
                self._scheduler.knows(session.sequence_id) == (session.finish_reason is None),
                f"{session.sequence_id} is known to the engine exactly while it runs",
            )
            require(
                session.resend_at_ns is None or self._is_resend_armed,
                f"{session.sequence_id} waits for a timer that is not set",
            )
        load = self._scheduler.load()
        require(
            self._step is not None or load.sequences_running + load.sequences_waiting == 0,
            "the engine has work and stands still",
        )

    def _apply(self, event: WorkerEvent) -> None:
        match event:
            case WorkerStarted():
                self._report()
            case StartReceived(message=message):
                self._start(message)
            case AcknowledgeReceived(message=message):
                self._acknowledge(message)
            case EndReceived(message=message):
                self._end(message)
            case StepFinished():
                self._step_finished(event)
            case StepFailed():
                self._step_failed(event)
            case TimerFired(key=key):
                self._timer_fired(key)
            case DrainRequested():
                self._drain()
            case _:
                assert_never(event)

    # ------------------------------------------------------------------ what routers ask

    def _start(self, start: StartSession) -> None:
        request_id = start.spec.request_id
        held = self._sessions.find(request_id)
        if held is None:
            if self._sessions.is_ended(request_id, start.session_epoch):
                self._refuse(start, RefuseReason.STALE_EPOCH, "the session has ended here")
            else:
                self._start_afresh(start)
        elif start.session_epoch == held.session_epoch:
            self._answer_started(held)
        elif start.session_epoch < held.session_epoch:
            message = f"the session runs under epoch {held.session_epoch}"
            self._refuse(start, RefuseReason.STALE_EPOCH, message)
        elif held.can_rebind(start):
            self._rebind(held, start)
        else:
            # The new owner has journaled something else: what runs here serves nobody.
            self._forget(held)
            self._start_afresh(start)

    def _start_afresh(self, start: StartSession) -> None:
        refusal = refusal_of(start, self._options)
        if refusal is not None:
            self._refuse(start, *refusal)
            return
        if self._is_draining:
            self._refuse(start, RefuseReason.DRAINING, "the worker is about to end")
            return
        if len(self._sessions) >= self._options.sessions_max:
            message = f"the worker holds {self._options.sessions_max} sessions"
            self._refuse(start, RefuseReason.FULL, message)
            return
        session = HeldSession(start, resend_delay_ns=self._options.resend_after_ns)
        self._sessions.add(session)
        self._scheduler.add(sequence_of(start, sequence_id=session.sequence_id))
        self.counters.sessions_started += 1
        self._answer_started(session)

    def _rebind(self, held: HeldSession, start: StartSession) -> None:
        held.rebind(start, resend_delay_ns=self._options.resend_after_ns)
        self.counters.sessions_rebound += 1
        self._answer_started(held)
        self._send_again(held)

    def _acknowledge(self, message: AcknowledgeTokens) -> None:
        for receipt in message.receipts:
            held = self._sessions.find(receipt.request_id)
            if held is None or held.session_epoch < receipt.session_epoch:
                self._send_refusal(
                    message.router_id,
                    receipt.request_id,
                    receipt.session_epoch,
                    RefuseReason.UNKNOWN_SESSION,
                )
            elif held.session_epoch > receipt.session_epoch:
                self.counters.stale_dropped += 1
            else:
                self._take_receipt(held, receipt)

    def _take_receipt(self, held: HeldSession, receipt: TokenReceipt) -> None:
        is_news = self._delivery.acknowledge(held, receipt, now_ns=self._now_ns)
        is_complete = held.finish_reason is not None and receipt.next_index == len(held.token_ids)
        if is_complete and not receipt.is_resend_wanted:
            self._forget(held)
        elif held.is_unacknowledged:
            if receipt.is_resend_wanted:
                self._send_again(held)
        elif receipt.is_resend_wanted or not is_news:
            # A probe: the router wants to know whether the session is still held.
            self._answer_started(held)

    def _end(self, message: EndSession) -> None:
        held = self._sessions.find(message.request_id)
        if held is None:
            # It may have overtaken its StartSession.
            self._sessions.remember_end(message.request_id, message.session_epoch)
        elif message.session_epoch < held.session_epoch:
            self.counters.stale_dropped += 1
        else:
            self._forget(held)
            self._sessions.remember_end(message.request_id, message.session_epoch)

    def _forget(self, session: HeldSession) -> None:
        if session.finish_reason is None:
            self._scheduler.abort(session.sequence_id)
        self._sessions.forget(session)

    def _answer_started(self, session: HeldSession) -> None:
        answer = SessionStarted(
            worker_id=self._options.worker_id,
            request_id=session.request_id,
            session_epoch=session.session_epoch,
        )
        self._emit(
            SendToRouter(router_id=session.router_id, message=answer, cause_id=self._cause_id)
        )

    def _refuse(self, start: StartSession, reason: RefuseReason, message: str) -> None:
        self._send_refusal(
            start.router_id, start.spec.request_id, start.session_epoch, reason, message
        )

    def _send_refusal(
        self,
        router_id: str,
        request_id: str,
        session_epoch: int,
        reason: RefuseReason,
        message: str = "",
    ) -> None:
        self.counters.sessions_refused += 1
        answer = SessionRefused(
            worker_id=self._options.worker_id,
            request_id=request_id,
            session_epoch=session_epoch,
            reason=reason,
            message=message,
        )
        self._emit(SendToRouter(router_id=router_id, message=answer, cause_id=self._cause_id))

    # ------------------------------------------------------------------ the engine

    def _run_next_step(self) -> None:
        if self._step is not None:
            return
        plan = self._scheduler.schedule()
        if plan is None:
            return
        op_id = f"step-{plan.step_id}"
        self._step = _StepInFlight(op_id=op_id, plan=plan)
        self._emit(RunStep(op_id=op_id, plan=plan, cause_id=self._cause_id))

    def _step_finished(self, event: StepFinished) -> None:
        require(
            self._step is not None and self._step.op_id == event.op_id,
            f"{event.op_id} is not in flight",
        )
        self._step = None
        emitted = self._scheduler.account(event.result)
        self._reporting.step_finished(tokens=len(emitted), duration_ns=event.duration_ns)
        self._emit(
            *self._delivery.deliver(
                emitted,
                step_id=event.result.step_id,
                now_ns=self._now_ns,
                cause_id=event.cause_id,
            )
        )

    def _step_failed(self, event: StepFailed) -> None:
        """One session of the step may be the poison: none of them is tried again here, and the
        engine's state is not trusted with the others either."""
        require(
            self._step is not None and self._step.op_id == event.op_id,
            f"{event.op_id} is not in flight",
        )
        assert self._step is not None
        in_step = {entry.sequence_id for entry in self._step.plan.entries}
        for session in self._sessions:
            if session.sequence_id in in_step:
                self._send_away(session, RefuseReason.ENGINE_ERROR, event.reason)
            else:
                self._send_away(session, RefuseReason.DRAINING, "the engine failed")
        self._stop(EXIT_ENGINE_FAILED, f"the engine failed: {event.reason}")

    # ------------------------------------------------------------------ timers

    def _timer_fired(self, key: str) -> None:
        if key == REPORT_TIMER:
            self._report()
            self._reports_draining += self._is_draining
            self._stop_if_drained()
        elif key == RESEND_TIMER:
            self._is_resend_armed = False
            self._drop_abandoned()
            self._emit(*self._delivery.send_overdue(now_ns=self._now_ns, cause_id=self._cause_id))
        elif key == DRAIN_TIMER and self._is_draining:
            self._end_drain()

    def _report(self) -> None:
        report = self._reporting.next_report(is_draining=self._is_draining)
        self._emit(PublishReport(report=report, cause_id=self._cause_id))
        self._set_timer(REPORT_TIMER, self._options.report_interval_ns)

    def _send_again(self, session: HeldSession) -> None:
        self._emit(
            *self._delivery.send_again([session], now_ns=self._now_ns, cause_id=self._cause_id)
        )

    def _drop_abandoned(self) -> None:
        for session in self._sessions:
            finished_at_ns = session.finished_at_ns
            if finished_at_ns is None:
                continue
            if self._now_ns - finished_at_ns >= self._options.unacknowledged_finished_ns_max:
                self.counters.sessions_abandoned += 1
                self._forget(session)

    def _arm_resend(self) -> None:
        if self._is_resend_armed:
            return
        if any(session.resend_at_ns is not None for session in self._sessions):
            self._is_resend_armed = True
            self._set_timer(RESEND_TIMER, self._options.resend_check_ns)

    # ------------------------------------------------------------------ the end

    def _drain(self) -> None:
        if self._is_draining:
            self._end_drain()
            return
        self._is_draining = True
        self._report()
        self._set_timer(DRAIN_TIMER, self._options.drain_ns_max)

    def _stop_if_drained(self) -> None:
        if self._reports_draining >= REPORTS_BEFORE_DRAINED and len(self._sessions) == 0:
            self._stop(EXIT_DRAINED, "drained: every session was delivered")

    def _end_drain(self) -> None:
        sessions_left = len(self._sessions)
        for session in self._sessions:
            self._send_away(session, RefuseReason.DRAINING, "the worker ends")
        self._stop(EXIT_DRAINED, f"drained: {sessions_left} sessions go on elsewhere")

    def _send_away(self, session: HeldSession, reason: RefuseReason, message: str) -> None:
        self._send_refusal(
            session.router_id, session.request_id, session.session_epoch, reason, message
        )
        self._forget(session)

    def _stop(self, exit_code: int, message: str) -> None:
        self._is_stopped = True
        self._emit(StopProcess(exit_code=exit_code, message=message, cause_id=self._cause_id))

    def _set_timer(self, key: str, after_ns: int) -> None:
        self._emit(SetTimer(key=key, after_ns=after_ns, cause_id=self._cause_id))

    def _emit(self, *commands: WorkerCommand) -> None:
        self._commands.extend(commands)

"""What routers ask of a worker: to start, acknowledge and end sessions.

    StartSession --admitted--> held, running --last token--> held, finished --receipt--> forgotten
                                  |    ^                              |
                 later epoch      +----+ (KV and tokens stay)         |
                 EndSession, later epoch that does not fit, 60 s unacknowledged --> forgotten

Epochs fence: what is older than the epoch held or ended here is refused or dropped, and a session
forgotten in one epoch starts again only in a later one.
"""

from libs.contracts.sessions import (
    AcknowledgeTokens,
    EndSession,
    RefuseReason,
    SessionStarted,
    StartSession,
    TokenReceipt,
)
from services.gpu_worker.admission import refusal_of, sequence_of
from services.gpu_worker.commands import SendToRouter
from services.gpu_worker.sessions import HeldSession
from services.gpu_worker.state import WorkerState

RESEND_TIMER = "resend"


class Serving:
    """The worker as routers see it."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._is_resend_armed = False

    @property
    def is_resend_armed(self) -> bool:
        """Whether the timer runs that sends again what nobody acknowledged."""
        return self._is_resend_armed

    def start(self, start: StartSession) -> None:
        """Run a session, go on with it under another epoch, or refuse it."""
        sessions = self._state.sessions
        request_id = start.spec.request_id
        held = sessions.find(request_id)
        if held is None:
            if sessions.is_ended(request_id, start.session_epoch):
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
            self._state.forget(held)
            self._start_afresh(start)

    def acknowledge(self, message: AcknowledgeTokens) -> None:
        """Note what is journaled; say which sessions are not held."""
        for receipt in message.receipts:
            held = self._state.sessions.find(receipt.request_id)
            if held is None or held.session_epoch < receipt.session_epoch:
                self._state.refuse(
                    message.router_id,
                    receipt.request_id,
                    receipt.session_epoch,
                    RefuseReason.UNKNOWN_SESSION,
                )
            elif held.session_epoch > receipt.session_epoch:
                self._state.counters.stale_dropped += 1
            else:
                self._take_receipt(held, receipt)

    def end(self, message: EndSession) -> None:
        """Forget a session, whatever its state."""
        sessions = self._state.sessions
        held = sessions.find(message.request_id)
        if held is None:
            # It may have overtaken its StartSession.
            sessions.remember_end(message.request_id, message.session_epoch)
        elif message.session_epoch < held.session_epoch:
            self._state.counters.stale_dropped += 1
        else:
            self._state.forget(held)
            sessions.remember_end(message.request_id, message.session_epoch)

    def send_overdue(self) -> None:
        """Send again what was not acknowledged in time; give up what nobody asks for any more."""
        state = self._state
        self._is_resend_armed = False
        for session in state.sessions:
            finished_at_ns = session.finished_at_ns
            if finished_at_ns is None:
                continue
            if state.now_ns - finished_at_ns >= state.options.unacknowledged_finished_ns_max:
                state.counters.sessions_abandoned += 1
                state.forget(session)
        state.emit(*state.delivery.send_overdue(now_ns=state.now_ns, cause_id=state.cause_id))

    def arm_resend(self) -> None:
        """Have a timer run for as long as something is unacknowledged."""
        if self._is_resend_armed:
            return
        if any(session.resend_at_ns is not None for session in self._state.sessions):
            self._is_resend_armed = True
            self._state.set_timer(RESEND_TIMER, self._state.options.resend_check_ns)

    def _start_afresh(self, start: StartSession) -> None:
        state = self._state
        refusal = self._refusal_now(start)
        if refusal is not None:
            self._refuse(start, *refusal)
            return
        position = state.positions.serving
        assert position is not None
        assert position.scheduler is not None
        session = HeldSession(
            start, scheduler=position.scheduler, resend_delay_ns=state.options.resend_after_ns
        )
        state.sessions.add(session)
        session.scheduler.add(
            sequence_of(start, sequence_id=session.sequence_id), now_ns=state.now_ns
        )
        state.counters.sessions_started += 1
        self._answer_started(session)

    def _refusal_now(self, start: StartSession) -> tuple[RefuseReason, str] | None:
        """Say why the session cannot be started here and now, or None if it can."""
        state = self._state
        refusal = refusal_of(start, state.options)
        if refusal is not None:
            return refusal
        if state.is_refusing:
            return RefuseReason.DRAINING, "the worker is about to end"
        position = state.positions.serving
        if position is None or not position.is_serving:
            return RefuseReason.MOVED, "the worker leads no replica that serves"
        if len(state.sessions) >= state.options.sessions_max:
            return RefuseReason.FULL, f"the worker holds {state.options.sessions_max} sessions"
        return None

    def _rebind(self, held: HeldSession, start: StartSession) -> None:
        state = self._state
        held.rebind(start, resend_delay_ns=state.options.resend_after_ns)
        state.counters.sessions_rebound += 1
        self._answer_started(held)
        self._send_again(held)

    def _take_receipt(self, held: HeldSession, receipt: TokenReceipt) -> None:
        state = self._state
        is_news = state.delivery.acknowledge(held, receipt, now_ns=state.now_ns)
        is_complete = held.finish_reason is not None and receipt.next_index == len(held.token_ids)
        if is_complete and not receipt.is_resend_wanted:
            state.forget(held)
        elif held.is_unacknowledged:
            if receipt.is_resend_wanted:
                self._send_again(held)
        elif receipt.is_resend_wanted or not is_news:
            # A probe: the router wants to know whether the session is still held.
            self._answer_started(held)

    def _answer_started(self, session: HeldSession) -> None:
        state = self._state
        answer = SessionStarted(
            worker_id=state.options.worker_id,
            request_id=session.request_id,
            session_epoch=session.session_epoch,
        )
        state.emit(
            SendToRouter(router_id=session.router_id, message=answer, cause_id=state.cause_id)
        )

    def _refuse(self, start: StartSession, reason: RefuseReason, message: str) -> None:
        self._state.refuse(
            start.router_id, start.spec.request_id, start.session_epoch, reason, message
        )

    def _send_again(self, session: HeldSession) -> None:
        state = self._state
        state.emit(
            *state.delivery.send_again([session], now_ns=state.now_ns, cause_id=state.cause_id)
        )

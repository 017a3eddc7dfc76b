"""Sessions on workers: placing them, hearing their tokens, placing them again after a loss."""

from libs.contracts.journal import SessionDispatched, SessionFailed
from libs.contracts.online import FailReason
from libs.contracts.reports import WorkerReport
from libs.contracts.sessions import (
    AcknowledgeTokens,
    EndSession,
    RefuseReason,
    SessionRefused,
    SessionStarted,
    TokenReceipt,
)
from libs.contracts.token_step import SessionTokens, TokenStep
from services.online_router.commands import SendToWorker
from services.online_router.placement import view_of
from services.online_router.sessions import Phase, Session
from services.online_router.state import RouterState
from services.online_router.waiting import WaitingLine


class Dispatch:
    """Everything between a promised session and the worker in charge of it."""

    def __init__(self, state: RouterState) -> None:
        self._state = state

    # ------------------------------------------------------------------ workers

    def worker_reported(self, report: WorkerReport) -> None:
        """Note the worker's state; who waits may find room there."""
        state = self._state
        known = state.workers.get(report.worker_id)
        if known is not None and report.beat < known.report.beat:
            return  # overtaken on the way
        state.worker_liveness.observe_peer(report.worker_id)
        state.worker_heard(view_of(report))

    def echo_heard(self) -> None:
        """Count silence; the sessions of the dead move on."""
        state = self._state
        for worker_id in state.worker_liveness.observe_echo(now_ns=state.now_ns):
            self._lose_worker(worker_id)
        for worker_id in state.worker_liveness.suspects():
            # An empty receipt: only to learn whether anybody still listens there.
            self.acknowledge(worker_id, ())

    def _lose_worker(self, worker_id: str) -> None:
        state = self._state
        state.workers.pop(worker_id, None)
        state.counters.workers_lost += 1
        for request_id in state.take_placed(worker_id):
            session = state.sessions[request_id]
            if session.phase is Phase.PLACED:
                self._place_after_loss(session)

    def _place_after_loss(self, session: Session) -> None:
        """Strike a session that may have killed its worker; place it again otherwise."""
        state = self._state
        if len(session.token_ids) > session.tokens_at_dispatch:
            session.strikes = 0
        elif session.is_started:
            session.strikes += 1
        if session.strikes >= state.options.strikes_max:
            message = f"{session.strikes} workers were lost in a row without one new token"
            self.fail(session, FailReason.WORKERS_DIED, message)
        else:
            self.wait(session, avoided_worker_id=session.worker_id)

    # ------------------------------------------------------------------ placing

    def wait(self, session: Session, *, avoided_worker_id: str = "") -> None:
        """Let the session go to whoever has room, at the end of this event or later."""
        self._state.unassign(session)
        self._state.join_line(session, avoided_worker_id=avoided_worker_id)
        if session.phase is not Phase.WAITING:
            session.move(Phase.WAITING)

    def place_waiting(self) -> None:
        """Give what room there is to those who wait, in their order.

        Runs after every event that may have made room: nobody waits while a worker could begin.
        """
        state = self._state
        if not state.is_placing_due:
            return
        state.is_placing_due = False
        for alias in sorted(state.waiting):
            self._place_line(state.waiting[alias])

    def _place_line(self, line: WaitingLine) -> None:
        for request_id in line:
            session = self._state.sessions[request_id]
            avoided_worker_id = session.avoided_worker_id
            worker_id = self._state.choose_worker_for(session, avoided_worker_id=avoided_worker_id)
            if worker_id is not None:
                self._dispatch(session, worker_id)
            elif not avoided_worker_id:
                return  # who comes behind finds no more room

    def _dispatch(self, session: Session, worker_id: str) -> None:
        """Write that this worker is in charge; the dispatch itself follows the record."""
        state = self._state
        state.counters.resumed += session.worker_id != ""
        state.assign(session, worker_id)
        if session.phase is not Phase.PLACED:
            session.move(Phase.PLACED)
        state.writer.add(
            SessionDispatched(
                request_id=session.request_id,
                session_epoch=session.session_epoch,
                worker_id=worker_id,
            )
        )

    def start(self, session: Session) -> None:
        """Send the dispatch, whose epoch is durable now."""
        state = self._state
        session.dispatched_at_ns = session.heard_at_ns = state.now_ns
        state.latencies.dispatched(session, now_ns=state.now_ns)
        state.emit(
            SendToWorker(
                worker_id=session.worker_id,
                message=session.start_message(router_id=state.options.router_id),
                cause_id=session.request_id,
            )
        )

    def fail(self, session: Session, reason: FailReason, message: str) -> None:
        """Decide that the session ends without a full answer; its record makes it so."""
        if session.failure is not None or session.finish_reason is not None:
            return
        session.failure = SessionFailed(
            request_id=session.request_id, reason=reason, message=message
        )
        self._state.writer.add(session.failure)
        if session.phase is not Phase.OPENING:
            self._state.end_on_worker(session)
            self._state.unassign(session)
            self._state.leave_line(session)
            session.move(Phase.ENDING)

    def cancel(self, session: Session) -> None:
        """The client no longer wants the answer."""
        self.fail(session, FailReason.CANCELLED, "cancelled by the client")

    # ------------------------------------------------------------------ what workers say

    def tokens_received(self, step: TokenStep) -> None:
        """Take what is new, ask for what is missing, acknowledge what is known."""
        receipts: list[TokenReceipt] = []
        for entry in step.entries:
            session = self._state.find(entry.request_id)
            is_wanted = session is not None and session.failure is None
            if session is None or not is_wanted or entry.session_epoch != session.session_epoch:
                self._end_stale(step.worker_id, entry, session)
                continue
            receipt = self._take(session, entry)
            if receipt is not None:
                receipts.append(receipt)
        if receipts:
            self.acknowledge(step.worker_id, tuple(receipts))

    def _take(self, session: Session, entry: SessionTokens) -> TokenReceipt | None:
        """Queue the entry's new tokens for the journal; return what to tell the worker at once."""
        if session.phase is not Phase.PLACED:
            return session.receipt()
        session.is_started = True
        session.heard_at_ns = self._state.now_ns
        known = len(session.token_ids) - entry.first_index
        if known < 0:
            return self._ask_resend(session)
        has_news = known < len(entry.token_ids) or (
            entry.finish_reason is not None and known == len(entry.token_ids)
        )
        if not has_news:
            return session.receipt()
        if not _is_scored_as_asked(session, entry):
            self._state.counters.stale_dropped += 1
            return None
        fresh = SessionTokens(
            request_id=session.request_id,
            session_epoch=session.session_epoch,
            first_index=len(session.token_ids),
            token_ids=entry.token_ids[known:],
            texts=entry.texts[known:],
            finish_reason=entry.finish_reason,
            logprobs=entry.logprobs[known:],
        )
        session.logprobs.extend(fresh.logprobs)
        session.token_ids.extend(fresh.token_ids)
        session.texts.extend(fresh.texts)
        self._state.writer.add(fresh)
        if fresh.finish_reason is not None:
            session.finish_reason = fresh.finish_reason
            self._state.unassign(session)
            session.move(Phase.ENDING)
        return None

    def _ask_resend(self, session: Session) -> TokenReceipt | None:
        state = self._state
        if state.now_ns - session.resend_asked_at_ns < state.options.resend_ask_interval_ns:
            return None
        session.resend_asked_at_ns = state.now_ns
        return session.receipt(is_resend_wanted=True)

    def _end_stale(self, worker_id: str, entry: SessionTokens, session: Session | None) -> None:
        """Tokens that nobody waits for: the worker may forget that session."""
        state = self._state
        state.counters.stale_dropped += 1
        if session is not None and entry.session_epoch > session.session_epoch:
            return  # not ours to end: a later owner may have started it
        message = EndSession(request_id=entry.request_id, session_epoch=entry.session_epoch)
        state.emit(SendToWorker(worker_id=worker_id, message=message, cause_id=entry.request_id))

    def started(self, answer: SessionStarted) -> None:
        """The worker holds the session."""
        session = self._in_charge(answer)
        if session is not None:
            session.is_started = True
            session.heard_at_ns = self._state.now_ns

    def refused(self, answer: SessionRefused) -> None:
        """The worker does not run the session: find another way, or another end."""
        session = self._in_charge(answer)
        if session is None:
            return
        match answer.reason:
            case RefuseReason.INVALID | RefuseReason.WRONG_MODEL:
                self.fail(session, FailReason.REFUSED, answer.message or str(answer.reason))
            case RefuseReason.FULL | RefuseReason.DRAINING:
                self._place_elsewhere(session)
            case RefuseReason.UNKNOWN_SESSION | RefuseReason.STALE_EPOCH:
                self.wait(session)
            case RefuseReason.MOVED:
                self._follow(session, answer.target_worker_id)
            case RefuseReason.ENGINE_ERROR:
                session.is_started = True
                self._place_after_loss(session)

    def _follow(self, session: Session, target_worker_id: str) -> None:
        """Go where the session's KV went, if that worker is there, be it full or not."""
        target = self._state.workers.get(target_worker_id)
        if target is None or not target.is_taking:
            self._place_elsewhere(session)
        else:
            self._dispatch(session, target_worker_id)

    def _place_elsewhere(self, session: Session) -> None:
        """Go to another worker; if there is none, to the same one when it is heard again."""
        view = self._state.workers.get(session.worker_id)
        if view is not None:
            view.has_refused = True
        self.wait(session, avoided_worker_id=session.worker_id)

    def _in_charge(self, answer: SessionStarted | SessionRefused) -> Session | None:
        session = self._state.sessions.get(answer.request_id)
        if (
            session is None
            or session.phase is not Phase.PLACED
            or session.session_epoch != answer.session_epoch
            or session.worker_id != answer.worker_id
        ):
            return None
        return session

    # ------------------------------------------------------------------ what may have been lost

    def sweep(self) -> None:
        """Repeat what was not answered, ask after the silent, end the expired, and try those again
        who refused."""
        state = self._state
        probes: dict[str, list[TokenReceipt]] = {}
        for request_id in sorted(state.sessions):
            session = state.sessions[request_id]
            if session.expires_at_ns is not None and session.expires_at_ns <= state.now_ns:
                self._expire(session)
            elif session.phase is Phase.PLACED:
                self._sweep_placed(session, probes)
        for worker_id in sorted(probes):
            self.acknowledge(worker_id, tuple(probes[worker_id]))
        for view in state.workers.values():
            state.is_placing_due |= view.has_refused
            view.has_refused = False

    def _expire(self, session: Session) -> None:
        if session.phase in (Phase.OPENING, Phase.PLACED, Phase.WAITING):
            self.fail(session, FailReason.EXPIRED, "the request's time has passed")

    def _sweep_placed(self, session: Session, probes: dict[str, list[TokenReceipt]]) -> None:
        state = self._state
        if session.epoch_committed < session.session_epoch:
            return  # the dispatch waits for its journal record
        if not session.is_started:
            if state.now_ns - session.dispatched_at_ns >= state.options.start_repeat_ns:
                self.start(session)
        elif state.now_ns - session.heard_at_ns >= state.options.probe_after_ns:
            session.heard_at_ns = state.now_ns
            receipt = session.receipt(is_resend_wanted=True)
            probes.setdefault(session.worker_id, []).append(receipt)

    def acknowledge(self, worker_id: str, receipts: tuple[TokenReceipt, ...]) -> None:
        """Tell one worker what is durable, for all its sessions in one message."""
        state = self._state
        message = AcknowledgeTokens(router_id=state.options.router_id, receipts=receipts)
        state.emit(SendToWorker(worker_id=worker_id, message=message, cause_id=state.cause_id))


def _is_scored_as_asked(session: Session, entry: SessionTokens) -> bool:
    """Whether log probabilities come with the tokens exactly if the request asked for them."""
    is_asked = session.known_spec().sampling.logprobs is not None
    return not entry.token_ids or is_asked == bool(entry.logprobs)

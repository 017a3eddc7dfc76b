"""What a durable journal record sets free: promises, dispatches, tokens to clients, receipts."""

from collections.abc import Iterable

from libs.contracts.journal import (
    JournalClosed,
    JournalTakenOver,
    SessionDispatched,
    SessionFailed,
    SessionOpened,
)
from libs.contracts.online import FailReason
from libs.contracts.sessions import TokenReceipt
from libs.contracts.token_step import SessionTokens
from libs.kernel.core import require
from services.online_router.admission import Admission
from services.online_router.dispatch import Dispatch
from services.online_router.journal_writer import Committed
from services.online_router.sessions import Phase, Session
from services.online_router.state import RouterState


class Delivery:
    """Acts on commits of our own journal, in the order of the records."""

    def __init__(self, state: RouterState, admission: Admission, dispatch: Dispatch) -> None:
        self._state = state
        self._admission = admission
        self._dispatch = dispatch

    def committed(self, committed: Committed) -> list[str]:
        """Act on one durable batch; return the adopted sessions that are ours from here on."""
        touched: dict[str, Session] = {}
        adopted: list[str] = []
        for record in committed.records:
            match record:
                case SessionOpened():
                    session = self._opened(record, committed.sequence)
                    if session is not None and session.is_adopted:
                        adopted.append(session.request_id)
                case SessionDispatched():
                    session = self._dispatched(record)
                case SessionTokens():
                    session = self._tokens(record)
                case SessionFailed():
                    session = self._failed(record)
                case JournalTakenOver() | JournalClosed():
                    require(False, "a foreign record in our own journal")
            if session is not None:
                touched[session.request_id] = session
        self._relay(touched.values())
        return adopted

    def _opened(self, record: SessionOpened, sequence: int) -> Session | None:
        session = self._state.sessions.get(record.spec.request_id)
        if session is None:
            return None
        self._state.writer.retain(session.request_id, sequence=sequence)
        if session.phase is not Phase.OPENING:
            return None  # written anew to shorten the journal
        session.tokens_committed = len(record.generated_token_ids)
        session.epoch_committed = record.session_epoch
        session.submission = None
        if not session.is_adopted:
            self._state.counters.accepted += 1
            self._state.reply(session, self._admission.accepted(session))
        if session.end_record() is not None:
            self._state.unassign(session)
            session.move(Phase.ENDING)
        elif self._is_worker_there(session):
            session.move(Phase.PLACED)
            self._dispatch.start(session)
        else:
            self._dispatch.wait(session)
        return session

    def _is_worker_there(self, session: Session) -> bool:
        """Whether the worker chosen before the record was durable still lives, undisturbed."""
        placed = self._state.placed.get(session.worker_id, ())
        view = self._state.workers.get(session.worker_id)
        # A lead that has drained since then refuses, which costs a round; one that serves nothing
        # may be all there was to choose.
        return view is not None and view.report.is_serving and session.request_id in placed

    def _dispatched(self, record: SessionDispatched) -> Session | None:
        session = self._state.sessions.get(record.request_id)
        if session is None:
            return None
        session.epoch_committed = record.session_epoch
        is_current = record.session_epoch == session.session_epoch
        if session.phase is Phase.PLACED and is_current:
            self._dispatch.start(session)
        return session

    def _tokens(self, record: SessionTokens) -> Session | None:
        session = self._state.sessions.get(record.request_id)
        if session is None:
            return None
        session.tokens_committed = record.first_index + len(record.token_ids)
        if record.finish_reason is not None:
            self._state.counters.finished += 1
            self._end(session)
        return session

    def _failed(self, record: SessionFailed) -> Session | None:
        session = self._state.sessions.get(record.request_id)
        if session is None:
            return None
        self._state.counters.failed += 1
        self._state.counters.failed_by_reason[record.reason] += 1
        if record.reason is not FailReason.CANCELLED:
            self._state.latencies.failed(session)
        self._end(session)
        return session

    def _end(self, session: Session) -> None:
        state = self._state
        session.move(Phase.ENDED)
        session.ended_at_ns = state.now_ns
        del state.sessions[session.request_id]
        evicted = state.ended.put(session)
        if evicted is not None:
            state.writer.release(evicted.request_id)

    def _relay(self, touched: Iterable[Session]) -> None:
        """Send each touched session's news to its client, and receipts to the workers."""
        receipts: dict[str, list[TokenReceipt]] = {}
        for session in touched:
            has_news = session.tokens_relayed < session.tokens_committed
            if has_news or session.phase is Phase.ENDED:
                news = session.tokens_committed - session.tokens_relayed
                self._state.counters.tokens_relayed += news
                self._note_latencies(session, news)
                self._state.relay_from(session, session.tokens_relayed)
                if session.worker_id and session.failure is None:
                    receipts.setdefault(session.worker_id, []).append(session.receipt())
        for worker_id in sorted(receipts):
            self._dispatch.acknowledge(worker_id, tuple(receipts[worker_id]))

    def _note_latencies(self, session: Session, tokens: int) -> None:
        state = self._state
        state.latencies.relayed(session, tokens, now_ns=state.now_ns)
        if session.phase is Phase.ENDED and session.finish_reason is not None:
            state.latencies.finished(session, now_ns=state.now_ns)

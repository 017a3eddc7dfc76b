"""The online router's core: one event in, commands out.

It keeps three promises. A client hears `accepted` only when the request is in the journal. A token
goes to a client only when it is in the journal. A worker is dispatched only under an epoch that is
in the journal. Whoever holds the journal can therefore go on exactly where this router stopped,
and this router, once somebody else has written there, can say nothing more.

The parts: `admission` (submission to promise), `dispatch` (sessions on workers), `delivery` (what
a commit sets free), `recovery` (other routers' journals), over one shared `state`.
"""

from collections.abc import Sequence
from typing import assert_never

from libs.contracts.reports import RouterReport
from libs.contracts.sessions import SessionStarted
from libs.kernel.core import SetTimer, TimerFired, require
from libs.policy.liveness import EchoLiveness
from services.online_router.admission import Admission
from services.online_router.commands import PublishReport, PurgeJournal, RouterCommand
from services.online_router.delivery import Delivery
from services.online_router.dispatch import Dispatch
from services.online_router.ended import EndedSessions
from services.online_router.events import (
    CancelReceived,
    ClaimHeld,
    ClaimMade,
    ClaimUnavailable,
    JournalAppended,
    JournalAppendFailed,
    JournalRead,
    JournalsListed,
    JournalTailRead,
    JournalUnavailable,
    PeerUnreachable,
    PromptRefused,
    PromptTokenized,
    RouterEvent,
    RouterReported,
    RouterStarted,
    SubmissionMalformed,
    SubmissionReceived,
    TokensReceived,
    WorkerAnswered,
    WorkerReported,
)
from services.online_router.journal_writer import Committed, JournalWriter, WriterState
from services.online_router.latencies import Latencies
from services.online_router.options import RouterOptions
from services.online_router.recovery import Recovery
from services.online_router.sessions import Phase
from services.online_router.state import RouterState

REPORT_TIMER = "report"
SWEEP_TIMER = "sweep"
APPEND_TIMER = "append"


class RouterCore:
    """Decides everything an online router does; see the head of this file."""

    def __init__(self, options: RouterOptions) -> None:
        self._options = options
        self._state = RouterState(
            options=options,
            writer=self._new_writer(1),
            worker_liveness=EchoLiveness(options.liveness),
            journal_liveness=EchoLiveness(options.liveness),
            ended=EndedSessions(options),
            latencies=Latencies(options.objective),
        )
        self._admission = Admission(self._state)
        self._dispatch = Dispatch(self._state)
        self._delivery = Delivery(self._state, self._admission, self._dispatch)
        self._recovery = Recovery(self._state)
        self._beat = 0
        self._echo_beat = -1

    @property
    def state(self) -> RouterState:
        """The shared state, for tests, metrics and the shell's log lines; read only."""
        return self._state

    def handle(self, event: RouterEvent, *, now_ns: int) -> Sequence[RouterCommand]:
        """Apply one event and return the commands it brings forth, in order."""
        state = self._state
        require(now_ns >= state.now_ns, "time went backwards")
        state.now_ns = now_ns
        state.cause_id = event.cause_id
        self._apply(event)
        self._dispatch.place_waiting()
        self._flush_journal()
        commands, state.commands = state.commands, []
        return commands

    def check_invariants(self) -> None:
        """What must hold between any two events; raises InvariantViolation."""
        state = self._state
        state.writer.check_invariants()
        for request_id, session in state.sessions.items():
            require(request_id == session.request_id, "a session under another's id")
            require(session.phase is not Phase.ENDED, f"session {request_id} is over yet open")
            session.check_invariants()
            if session.phase is Phase.PLACED:
                require(
                    request_id in state.placed.get(session.worker_id, ()),
                    f"session {request_id} is placed nowhere",
                )
        for worker_id, request_ids in state.placed.items():
            for request_id in request_ids:
                require(
                    request_id in state.sessions, f"worker {worker_id} holds ghost {request_id}"
                )
        self._check_waiting()

    def _check_waiting(self) -> None:
        """Whoever waits stands in a line, and nobody waits while a worker has room."""
        state = self._state
        for session in state.sessions.values():
            line = state.waiting.get(session.alias, ())
            is_waiting = session.phase is Phase.WAITING
            require(is_waiting == (session.request_id in line), f"{session.request_id}: its line")
        for line in state.waiting.values():
            first = next((state.sessions[request_id] for request_id in line), None)
            if first is not None and not first.avoided_worker_id:
                require(state.choose_worker_for(first) is None, "room, and somebody waits")

    def _apply(self, event: RouterEvent) -> None:
        match event:
            case RouterStarted():
                self._started()
            case TimerFired():
                self._timer_fired(event)
            case SubmissionReceived():
                self._admission.submission_received(event)
            case SubmissionMalformed():
                self._admission.submission_malformed(event)
            case PromptTokenized():
                self._admission.prompt_tokenized(event)
            case PromptRefused():
                self._admission.prompt_refused(event)
            case ClaimMade() | ClaimHeld() | ClaimUnavailable():
                self._claim_answered(event)
            case JournalAppended() | JournalAppendFailed() | JournalTailRead():
                self._journal_answered(event)
            case JournalsListed():
                self._recovery.listed(event)
            case JournalRead():
                self._recovery.read(event)
            case JournalUnavailable():
                self._journal_unavailable(event)
            case WorkerReported():
                self._dispatch.worker_reported(event.report)
            case RouterReported():
                self._router_reported(event.report)
            case PeerUnreachable():
                self._state.worker_liveness.observe_unreachable(event.peer_id)
                self._recovery.router_unreachable(event.peer_id)
            case TokensReceived():
                self._dispatch.tokens_received(event.step)
            case WorkerAnswered():
                if isinstance(event.answer, SessionStarted):
                    self._dispatch.started(event.answer)
                else:
                    self._dispatch.refused(event.answer)
            case CancelReceived():
                self._cancel(event)
            case _:
                assert_never(event)

    # ------------------------------------------------------------------ time

    def _started(self) -> None:
        self._publish_report()
        self._set_timer(SWEEP_TIMER, self._options.sweep_interval_ns)

    def _timer_fired(self, event: TimerFired) -> None:
        match event.key:
            case "report":
                self._publish_report()
            case "sweep":
                self._sweep()
                self._set_timer(SWEEP_TIMER, self._options.sweep_interval_ns)
            case "append":
                command = self._state.writer.retry(cause_id=event.cause_id)
                if command is not None:
                    self._state.emit(command)

    def _sweep(self) -> None:
        self._dispatch.sweep()
        self._recovery.sweep()
        self._forget_ended()
        self._shorten_journal()

    def _forget_ended(self) -> None:
        state = self._state
        for session in state.ended.pop_old(now_ns=state.now_ns):
            state.writer.release(session.request_id)

    def _shorten_journal(self) -> None:
        """Drop what nobody needs; rewrite a session that keeps too much behind it."""
        state = self._state
        if self._recovery.is_active:
            return
        before_sequence = state.writer.purgeable_before()
        if before_sequence is not None:
            state.emit(
                PurgeJournal(
                    journal_id=state.writer.journal_id,
                    before_sequence=before_sequence,
                    cause_id=state.cause_id,
                )
            )
        if state.writer.bytes_kept <= state.options.journal_bytes_max:
            return
        request_id = state.writer.oldest_retained()
        session = state.sessions.get(request_id or "")
        if session is not None and session.phase in (Phase.PLACED, Phase.WAITING):
            state.writer.add(session.opened_record())
        elif request_id is not None and request_id in state.ended:
            state.ended.pop(request_id)
            state.writer.release(request_id)

    def _publish_report(self) -> None:
        state = self._state
        counters = state.counters
        report = RouterReport(
            **state.latencies.reported(now_ns=state.now_ns),
            router_id=self._options.router_id,
            beat=self._beat,
            journal_id=state.writer.journal_id,
            process_id=self._options.process_id,
            sessions_open=len(state.sessions),
            sessions_waiting=state.sessions_waiting,
            sessions_accepted=counters.accepted,
            sessions_adopted=counters.adopted,
            sessions_resumed=counters.resumed,
            workers_lost=counters.workers_lost,
            tokens_relayed=counters.tokens_relayed,
            stale_dropped=counters.stale_dropped,
            requests_rejected=counters.rejected,
            requests_failed=counters.failed,
        )
        self._beat += 1
        state.emit(PublishReport(report=report, cause_id=state.cause_id))
        self._set_timer(REPORT_TIMER, self._options.report_interval_ns)

    def _router_reported(self, report: RouterReport) -> None:
        if report.router_id != self._options.router_id:
            self._recovery.router_heard(journal_id=report.journal_id, router_id=report.router_id)
        elif report.beat > self._echo_beat:  # a doubled echo must not count twice
            self._echo_beat = report.beat
            self._dispatch.echo_heard()
            self._recovery.echo_heard()

    # ------------------------------------------------------------------ the journal

    def _flush_journal(self) -> None:
        command = self._state.writer.next_command(cause_id=self._state.cause_id)
        if command is not None:
            self._state.emit(command)

    def _journal_answered(
        self, event: JournalAppended | JournalAppendFailed | JournalTailRead
    ) -> None:
        writer = self._state.writer
        match event:
            case JournalAppended():
                if not self._recovery.appended(op_id=event.op_id, sequence=event.sequence):
                    self._committed(writer.appended(op_id=event.op_id, sequence=event.sequence))
            case JournalAppendFailed():
                if self._recovery.append_failed(op_id=event.op_id):
                    return
                if event.is_full:
                    self._found_full(event.op_id)
                    return
                command = writer.append_failed(op_id=event.op_id, cause_id=event.cause_id)
                if command is not None:
                    self._state.emit(command)
            case JournalTailRead():
                if self._admission.claim_check_read(event):
                    return
                self._committed(
                    writer.tail_read(
                        op_id=event.op_id, sequence=event.sequence, message_id=event.message_id
                    )
                )
                self._after_verification()

    def _journal_unavailable(self, event: JournalUnavailable) -> None:
        self._recovery.unavailable(op_id=event.op_id)
        if not self._admission.claim_check_unavailable(event):
            self._state.writer.tail_unavailable(op_id=event.op_id)
            self._after_verification()

    def _after_verification(self) -> None:
        match self._state.writer.state:
            case WriterState.FENCED:
                self._fenced()
            case WriterState.PAUSING | WriterState.VERIFYING:
                self._set_timer(APPEND_TIMER, self._options.append_retry_ns)
            case WriterState.IDLE | WriterState.APPENDING:
                pass

    def _found_full(self, op_id: str) -> None:
        """Refuse what is not promised yet; tokens of sessions that are wait for room."""
        if self._state.writer.found_full(op_id=op_id):
            self._state.writer.withdraw_openings(self._admission.refuse_openings())
            self._after_verification()

    def _committed(self, committed: Committed | None) -> None:
        if committed is None:
            return
        for request_id in self._delivery.committed(committed):
            self._recovery.session_written(request_id)

    def _fenced(self) -> None:
        """Another router owns our sessions: forget them, say nothing, start a journal anew."""
        state = self._state
        state.counters.times_fenced += 1
        self._admission.discard_unpromised()
        state.sessions.clear()
        state.placed.clear()
        state.waiting.clear()
        state.session_by_op_id.clear()
        state.ended = EndedSessions(self._options)
        state.journals_owned += 1
        state.writer = self._new_writer(state.journals_owned)
        self._recovery.reset()

    def _new_writer(self, number: int) -> JournalWriter:
        return JournalWriter(
            journal_id=f"{self._options.router_id}-{number}",
            batch_bytes_max=self._options.batch_bytes_max,
        )

    # ------------------------------------------------------------------ the rest

    def _claim_answered(self, event: ClaimMade | ClaimHeld | ClaimUnavailable) -> None:
        is_made = isinstance(event, ClaimMade)
        if self._recovery.claim_ended(op_id=event.op_id, is_made=is_made):
            return
        match event:
            case ClaimMade():
                self._admission.claim_made(event)
            case ClaimHeld():
                self._admission.claim_held(event)
            case ClaimUnavailable():
                self._admission.claim_unavailable(event)

    def _cancel(self, event: CancelReceived) -> None:
        request_id = event.cancellation.request_id
        session = self._state.sessions.get(request_id)
        if session is None:
            if self._state.ended.pop(request_id) is not None:
                self._state.writer.release(request_id)
            return
        if session.phase in (Phase.TOKENIZING, Phase.CLAIMING):
            self._admission.cancel_unpromised(session)
        else:
            self._dispatch.cancel(session)

    def _set_timer(self, key: str, after_ns: int) -> None:
        self._state.emit(SetTimer(key=key, after_ns=after_ns, cause_id=self._state.cause_id))

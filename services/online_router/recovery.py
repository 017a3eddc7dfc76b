"""Taking over the journal of a router that died, or that we must believe dead.

    idle --a journal went silent--> READING --its records--> FENCING --our record is its last-->
    ADOPTING --sessions durable here, claims ours--> CLOSING --closed--> idle

Nothing is trusted but the journal: the take-over record is appended with the sequence that was
read, so it fails if the owner, or another taker, wrote in between. A journal whose taker died half
way is left until the taker's own journal is closed: that one knows more. While a take-over is
under way our own journal is not shortened, so that whoever takes over from us sees all of it.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from libs.contracts.journal import JournalClosed, JournalTakenOver, SessionOpened
from libs.kernel.bounded import RecentMap
from libs.kernel.core import require
from services.online_router.commands import (
    AppendJournal,
    ClaimRequest,
    ListJournals,
    PingRouter,
    PurgeJournal,
    ReadJournal,
)
from services.online_router.events import JournalRead, JournalsListed
from services.online_router.replay import ReplayedJournal, ReplayedSession, replay
from services.online_router.sessions import PROMISED, Phase, Session
from services.online_router.state import RouterState

CLOSED_JOURNALS_MAX = 4096
"""Closed journals remembered; forgetting one costs one more read of it."""


class Stage(StrEnum):
    """Where a take-over stands."""

    READING = "reading"
    FENCING = "fencing"
    ADOPTING = "adopting"
    CLOSING = "closing"


@dataclass(slots=True, kw_only=True)
class Takeover:
    """One journal on its way into ours."""

    journal_id: str
    stage: Stage
    op_id: str
    sequence: int = 0
    replayed: ReplayedJournal = field(default_factory=ReplayedJournal)
    read_at_unix_ns: int = 0
    sessions_unwritten: set[str] = field(default_factory=set)
    claims_unmade: dict[str, str] = field(default_factory=dict)
    """Request id of each claim under way, by op id."""


class Recovery:
    """Finds silent journals and adopts what lives in them, one journal at a time."""

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._closed: RecentMap[str, bool] = RecentMap(entries_max=CLOSED_JOURNALS_MAX)
        self._listed: tuple[str, ...] = ()
        self._silent: list[str] = []
        self._takeover: Takeover | None = None
        self._list_op_id = ""
        self._listed_at_ns: int | None = None

    @property
    def is_active(self) -> bool:
        """Whether a take-over is under way."""
        return self._takeover is not None

    def reset(self) -> None:
        """Forget the take-over under way: we own a new journal and start over."""
        self._takeover = None
        self._silent = []

    # ------------------------------------------------------------------ finding

    def sweep(self) -> None:
        """List the journals now and then, and begin with a silent one."""
        state = self._state
        interval_ns = state.options.journals_list_interval_ns
        if self._listed_at_ns is None or state.now_ns - self._listed_at_ns >= interval_ns:
            self._listed_at_ns = state.now_ns
            self._list_op_id = state.next_op_id("list")
            state.emit(ListJournals(op_id=self._list_op_id, cause_id=state.cause_id))
        if self._takeover is None and self._silent and state.writer.is_healthy:
            self._begin(self._silent.pop(0))
        elif self._takeover is not None and self._takeover.stage is Stage.ADOPTING:
            self._advance(self._takeover)

    def listed(self, event: JournalsListed) -> None:
        """Watch every journal that holds messages and is not known to be closed."""
        if event.op_id != self._list_op_id:
            return
        state = self._state
        self._listed = tuple(sorted(event.messages_by_journal_id))
        for journal_id in self._listed:
            is_candidate = journal_id not in self._closed and not self._is_ours(journal_id)
            if is_candidate and not state.journal_liveness.is_alive(journal_id):
                state.journal_liveness.observe_peer(journal_id)

    def router_heard(self, *, journal_id: str, router_id: str) -> None:
        """A living router owns this journal."""
        self._state.journal_liveness.observe_peer(journal_id)
        self._state.router_by_journal_id[journal_id] = router_id

    def echo_heard(self) -> None:
        """Count the silence of journals."""
        state = self._state
        for journal_id in state.journal_liveness.observe_echo(now_ns=state.now_ns):
            state.router_by_journal_id.pop(journal_id, None)
            is_listed = journal_id in self._listed
            if is_listed and journal_id not in self._closed and journal_id not in self._silent:
                self._silent.append(journal_id)

        for journal_id in state.journal_liveness.suspects():
            router_id = state.router_by_journal_id.get(journal_id)
            if router_id is not None:
                state.emit(PingRouter(router_id=router_id, cause_id=journal_id))

    def router_unreachable(self, router_id: str) -> None:
        """The broker delivered nothing to the router; two missed reports now make it dead."""
        for journal_id, owner in sorted(self._state.router_by_journal_id.items()):
            if owner == router_id:
                self._state.journal_liveness.observe_unreachable(journal_id)

    def _is_ours(self, journal_id: str) -> bool:
        return journal_id == self._state.writer.journal_id

    # ------------------------------------------------------------------ reading and fencing

    def _begin(self, journal_id: str) -> None:
        op_id = self._state.next_op_id("read")
        self._takeover = Takeover(journal_id=journal_id, stage=Stage.READING, op_id=op_id)
        self._state.emit(
            ReadJournal(op_id=op_id, journal_id=journal_id, cause_id=self._state.cause_id)
        )

    def read(self, event: JournalRead) -> None:
        """Decide whether this journal can be taken now, and fence its owner."""
        takeover = self._takeover
        if takeover is None or event.op_id != takeover.op_id:
            return
        takeover.replayed = replay(event.records)
        takeover.sequence = event.sequence
        takeover.read_at_unix_ns = event.read_at_unix_ns
        if takeover.replayed.is_closed or not event.records:
            self._note_closed(takeover)
        elif self._must_wait_for_taker(takeover.replayed):
            self._takeover = None
        elif self._is_already_ours(takeover.replayed):
            self._adopt(takeover)
        else:
            self._fence(takeover)

    def _must_wait_for_taker(self, replayed: ReplayedJournal) -> bool:
        """Whether another taker is alive, or has a journal that must be adopted first."""
        if replayed.taken_over is None or self._is_already_ours(replayed):
            return False
        taker = replayed.taken_over.by_journal_id
        if taker in self._state.router_by_journal_id:
            return True
        return taker in self._listed and taker not in self._closed

    def _is_already_ours(self, replayed: ReplayedJournal) -> bool:
        taken_over = replayed.taken_over
        return taken_over is not None and self._is_ours(taken_over.by_journal_id)

    def _fence(self, takeover: Takeover) -> None:
        state = self._state
        takeover.stage = Stage.FENCING
        takeover.op_id = state.next_op_id("fence")
        record = JournalTakenOver(
            by_router_id=state.options.router_id, by_journal_id=state.writer.journal_id
        )
        state.emit(
            AppendJournal(
                op_id=takeover.op_id,
                journal_id=takeover.journal_id,
                message_id=takeover.op_id,
                expected_sequence=takeover.sequence,
                records=(record,),
                cause_id=state.cause_id,
            )
        )

    def appended(self, *, op_id: str, sequence: int) -> bool:
        """Our record is the last of the foreign journal. Returns whether the event was ours."""
        takeover = self._takeover
        if takeover is None or op_id != takeover.op_id:
            return False
        if takeover.stage is Stage.FENCING:
            takeover.sequence = sequence
            self._adopt(takeover)
        else:
            require(takeover.stage is Stage.CLOSING, f"an append in {takeover.stage}")
            self._note_closed(takeover, sequence=sequence)
        return True

    def append_failed(self, *, op_id: str) -> bool:
        """The owner lives, another taker won, or nobody knows: read it again when it is silent.

        Returns whether the event was ours.
        """
        takeover = self._takeover
        if takeover is None or op_id != takeover.op_id:
            return False
        self._takeover = None
        return True

    def unavailable(self, *, op_id: str) -> None:
        """The journal could not be read; it will be found silent again."""
        if self._takeover is not None and op_id == self._takeover.op_id:
            self._takeover = None

    def _note_closed(self, takeover: Takeover, *, sequence: int | None = None) -> None:
        self._closed.put(takeover.journal_id, True)
        self._state.journal_liveness.forget(takeover.journal_id)
        self._takeover = None
        if sequence is not None:
            self._state.emit(
                PurgeJournal(
                    journal_id=takeover.journal_id,
                    before_sequence=sequence,
                    cause_id=self._state.cause_id,
                )
            )

    # ------------------------------------------------------------------ adopting

    def _adopt(self, takeover: Takeover) -> None:
        takeover.stage = Stage.ADOPTING
        takeover.op_id = ""
        for request_id in sorted(takeover.replayed.sessions):
            known = self._state.find(request_id)
            if known is None or known.phase not in (*PROMISED, Phase.OPENING):
                self._adopt_session(takeover, takeover.replayed.sessions[request_id])
            elif known.phase is Phase.OPENING:
                takeover.sessions_unwritten.add(request_id)
            self._claim(takeover, request_id)
        self._advance(takeover)

    def _adopt_session(self, takeover: Takeover, replayed: ReplayedSession) -> None:
        """Open the session here: prompt and tokens from the journal, under a new epoch."""
        state = self._state
        session = _session_from(replayed, now_ns=state.now_ns, now_unix_ns=takeover.read_at_unix_ns)
        state.counters.adopted += 1
        state.sessions[session.request_id] = session
        worker_id: str | None = replayed.worker_id
        if worker_id not in state.workers:
            worker_id = state.choose_worker_for(session)
        state.assign(session, worker_id or replayed.worker_id)
        takeover.sessions_unwritten.add(session.request_id)
        state.writer.add(session.opened_record())
        end_record = session.end_record()
        if end_record is not None:
            state.writer.add(end_record)

    def _claim(self, takeover: Takeover, request_id: str) -> None:
        op_id = self._state.next_op_id("adopt")
        takeover.claims_unmade[op_id] = request_id
        self._state.emit(
            ClaimRequest(
                op_id=op_id,
                request_id=request_id,
                journal_id=self._state.writer.journal_id,
                is_forced=True,
                cause_id=request_id,
            )
        )

    def claim_ended(self, *, op_id: str, is_made: bool) -> bool:
        """One claim of an adopted session was answered. Returns whether the event was ours."""
        takeover = self._takeover
        request_id = takeover.claims_unmade.pop(op_id, None) if takeover is not None else None
        if takeover is None or request_id is None:
            return False
        if not is_made:
            self._claim(takeover, request_id)
        self._advance(takeover)
        return True

    def session_written(self, request_id: str) -> None:
        """An adopted session is durable in our journal."""
        if self._takeover is not None:
            self._takeover.sessions_unwritten.discard(request_id)
            self._advance(self._takeover)

    def _advance(self, takeover: Takeover) -> None:
        """Close the foreign journal once nothing of it depends on it any more."""
        is_done = not takeover.sessions_unwritten and not takeover.claims_unmade
        if takeover.stage is not Stage.ADOPTING or not is_done:
            return
        state = self._state
        takeover.stage = Stage.CLOSING
        takeover.op_id = state.next_op_id("close")
        state.emit(
            AppendJournal(
                op_id=takeover.op_id,
                journal_id=takeover.journal_id,
                message_id=takeover.op_id,
                expected_sequence=takeover.sequence,
                records=(JournalClosed(by_journal_id=state.writer.journal_id),),
                cause_id=state.cause_id,
            )
        )


def _session_from(replayed: ReplayedSession, *, now_ns: int, now_unix_ns: int) -> Session:
    opened: SessionOpened = replayed.opened
    expires_at_unix_ns = opened.expires_at_unix_ns
    return Session(
        request_id=opened.spec.request_id,
        alias=opened.spec.alias,
        reply_to=opened.reply_to,
        encoding=opened.encoding,
        submission=None,
        expires_at_ns=(
            None if expires_at_unix_ns is None else now_ns + expires_at_unix_ns - now_unix_ns
        ),
        expires_at_unix_ns=expires_at_unix_ns,
        phase=Phase.OPENING,
        spec=opened.spec,
        token_ids=list(replayed.token_ids),
        texts=list(replayed.texts),
        logprobs=list(replayed.logprobs),
        session_epoch=replayed.session_epoch,
        finish_reason=replayed.finish_reason,
        failure=replayed.failure,
        is_adopted=True,
    )

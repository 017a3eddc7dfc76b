"""What the parts of the router's core share: sessions, workers, the journal, commands to come."""

import hashlib
from dataclasses import dataclass, field

from libs.contracts.online import (
    FailReason,
    RejectReason,
    RequestFailed,
    RequestFinished,
    ToClient,
    TokensGenerated,
)
from libs.contracts.sessions import EndSession
from libs.engine.prefix_hashes import prefix_block_hashes
from libs.kernel.core import present
from libs.policy.liveness import EchoLiveness
from services.online_router.commands import Reply, RouterCommand, SendToWorker
from services.online_router.ended import EndedSessions
from services.online_router.journal_writer import JournalWriter
from services.online_router.latencies import Latencies
from services.online_router.options import RouterOptions
from services.online_router.placement import Wanted, WorkerView, choose_worker
from services.online_router.sessions import Phase, Session
from services.online_router.waiting import WaitingLine


@dataclass(slots=True, kw_only=True)
class RouterCounters:
    """What happened since the start; for reports and metrics."""

    accepted: int = 0
    rejected: int = 0
    finished: int = 0
    failed: int = 0
    adopted: int = 0
    resumed: int = 0
    tokens_relayed: int = 0
    stale_dropped: int = 0
    unanswerable: int = 0
    workers_lost: int = 0
    times_fenced: int = 0
    rejected_by_reason: dict[RejectReason, int] = field(
        default_factory=lambda: dict.fromkeys(RejectReason, 0)
    )
    failed_by_reason: dict[FailReason, int] = field(
        default_factory=lambda: dict.fromkeys(FailReason, 0)
    )


@dataclass(slots=True, kw_only=True)
class RouterState:
    """The state of one router. Only the core and its parts touch it, one event at a time."""

    options: RouterOptions
    writer: JournalWriter
    worker_liveness: EchoLiveness
    journal_liveness: EchoLiveness
    now_ns: int = 0
    """Time of the event being handled."""
    cause_id: str = ""
    """What provoked the event being handled."""
    journals_owned: int = 1
    sessions: dict[str, Session] = field(default_factory=dict)
    """Sessions that have not ended, by request id."""
    ended: EndedSessions
    session_by_op_id: dict[str, str] = field(default_factory=dict)
    workers: dict[str, WorkerView] = field(default_factory=dict)
    placed: dict[str, set[str]] = field(default_factory=dict)
    """Request ids placed on each worker; for membership, iterate sorted."""
    waiting: dict[str, WaitingLine] = field(default_factory=dict)
    """Who waits for a worker, by alias."""
    is_placing_due: bool = False
    """Somebody has joined a line, or room may have come, since places were last given."""
    router_by_journal_id: dict[str, str] = field(default_factory=dict)
    """Who owns which living journal, by the routers' reports."""
    counters: RouterCounters = field(default_factory=RouterCounters)
    latencies: Latencies
    commands: list[RouterCommand] = field(default_factory=list)
    op_count: int = 0

    def emit(self, command: RouterCommand) -> None:
        """Add a command to what this event brings forth."""
        self.commands.append(command)

    def next_op_id(self, kind: str) -> str:
        """Return an id that this process never used before."""
        self.op_count += 1
        return f"{self.options.router_id}:{kind}:{self.op_count}"

    def reply(self, session: Session, message: ToClient) -> None:
        """Send a message to the session's client."""
        self.emit(
            Reply(
                reply_to=session.reply_to,
                encoding=session.encoding,
                message=message,
                cause_id=self.cause_id,
            )
        )

    def find(self, request_id: str) -> Session | None:
        """Return the session, whether it still runs or lingers."""
        return self.sessions.get(request_id) or self.ended.get(request_id)

    def views_of(self, alias: str) -> list[WorkerView]:
        """Return the living workers of a model, by id."""
        views = (self.workers[worker_id] for worker_id in sorted(self.workers))
        return [view for view in views if view.report.alias == alias]

    def choose_worker_for(self, session: Session, *, avoided_worker_id: str = "") -> str | None:
        """Choose where the session runs; None: nobody has room."""
        views = self.views_of(session.alias)
        if not views:
            return None
        spec = session.known_spec()
        known_ids = (*spec.prompt_token_ids, *session.token_ids)
        hashes = prefix_block_hashes(known_ids, block_tokens=views[0].report.block_tokens, salt="")
        chosen = choose_worker(
            views,
            wanted=Wanted(
                prompt_tokens=len(known_ids),
                prompt_hashes=hashes,
                tokens_max=len(spec.prompt_token_ids) + spec.max_tokens,
                is_offline=session.is_offline,
            ),
            soon_ns=self.options.soon_ns,
            avoided_worker_id=avoided_worker_id,
        )
        return None if chosen is None else chosen.report.worker_id

    def assign(self, session: Session, worker_id: str) -> None:
        """Put the worker in charge under a new epoch that nobody has used."""
        self.unassign(session)
        self.leave_line(session)
        session.worker_id = worker_id
        session.session_epoch += 1
        session.is_started = False
        session.tokens_at_dispatch = len(session.token_ids)
        self.placed.setdefault(worker_id, set()).add(session.request_id)
        self._charge(session)

    def unassign(self, session: Session) -> None:
        """Nobody is in charge of the session any more."""
        placed = self.placed.get(session.worker_id, set())
        if session.request_id in placed:
            placed.discard(session.request_id)
            view = self.workers.get(session.worker_id)
            if view is not None:
                view.since_report(is_offline=session.is_offline).sessions_left += 1
                self.is_placing_due = True

    def join_line(self, session: Session, *, avoided_worker_id: str = "") -> None:
        """Let the session wait for a worker, its turn by priority and arrival.

        Nobody knows when an adopted session came; it has waited longest.
        """
        session.avoided_worker_id = avoided_worker_id
        self.is_placing_due = True
        self.waiting.setdefault(session.alias, WaitingLine()).add(
            session.request_id,
            priority=session.known_spec().priority,
            arrived_at_ns=session.received_at_ns or 0,
        )

    def leave_line(self, session: Session) -> None:
        """The session waits no more, if it did."""
        session.avoided_worker_id = ""
        if session.alias in self.waiting:
            self.waiting[session.alias].discard(session.request_id)

    @property
    def sessions_waiting(self) -> int:
        """Accepted sessions that no worker has room for."""
        return sum(len(line) for line in self.waiting.values())

    def worker_heard(self, view: WorkerView) -> None:
        """Go by a newer report, and by what was sent and cannot be in it yet."""
        worker_id = view.report.worker_id
        self.workers[worker_id] = view
        self.is_placing_due = True
        for request_id in self.placed.get(worker_id, ()):
            if not self.sessions[request_id].is_started:
                self._charge(self.sessions[request_id])

    def _charge(self, session: Session) -> None:
        view = self.workers.get(session.worker_id)
        if view is not None:
            view.note_sent(tokens=session.tokens_known, is_offline=session.is_offline)

    def take_placed(self, worker_id: str) -> list[str]:
        """Return, in order, the requests placed on a worker that is no more; nobody is in charge
        of them now."""
        return sorted(self.placed.pop(worker_id, set()))

    def end_on_worker(self, session: Session) -> None:
        """Tell the worker in charge to forget the session."""
        if session.worker_id:
            message = EndSession(request_id=session.request_id, session_epoch=session.session_epoch)
            self.emit(
                SendToWorker(worker_id=session.worker_id, message=message, cause_id=self.cause_id)
            )

    def relay_from(self, session: Session, first_index: int) -> None:
        """Send the client the committed tokens from this index on, and the end if it is over."""
        end = first_index
        while end < session.tokens_committed:
            start, end = end, self._relay_end(session, end)
            message = TokensGenerated(
                request_id=session.request_id,
                first_index=start,
                token_ids=tuple(session.token_ids[start:end]),
                texts=tuple(session.texts[start:end]),
                logprobs=tuple(session.logprobs[start:end]),
            )
            self.reply(session, message)
        session.tokens_relayed = session.tokens_committed
        if session.phase is Phase.ENDED:
            self.reply(session, self.end_message(session))

    def _relay_end(self, session: Session, start: int) -> int:
        """Where the message to the client that begins with this token ends."""
        sampling = session.known_spec().sampling
        tokens_max = self.options.relay_tokens_max
        if sampling.logprobs is not None:
            tokens_max = min(tokens_max, self.options.scored_places_max(sampling.logprobs))
        if sampling.prompt_logprobs and start == 0:
            tokens_max = 1  # The prompt's scores fill its message.
        return min(start + tokens_max, session.tokens_committed)

    def end_message(self, session: Session) -> RequestFinished | RequestFailed:
        """How the session ended, for its client."""
        if session.failure is not None:
            return RequestFailed(
                request_id=session.request_id,
                reason=session.failure.reason,
                message=session.failure.message,
            )
        return RequestFinished(
            request_id=session.request_id,
            finish_reason=present(session.finish_reason, "an ended session without an end"),
            prompt_tokens=len(session.known_spec().prompt_token_ids),
            completion_tokens=len(session.token_ids),
        )


def derived_seed(request_id: str) -> int:
    """The seed of a request that names none: the same for every attempt at it."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

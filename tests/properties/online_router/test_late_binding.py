"""Requests, reports, answers, losses and refusals in any order, over workers that tell the truth.

Safety after every event: a session is in one worker's charge or in line, no worker is in charge of
more than fits and the few that wait, and nobody waits while a worker has room (which the core's own
invariants say). Liveness: once a worker comes that stays, every request ends, once.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.contracts.online import CancelRequest, FinishReason, RequestFinished
from libs.contracts.sessions import (
    EndSession,
    RefuseReason,
    SessionRefused,
    SessionStarted,
    StartSession,
)
from services.online_router.commands import AppendJournal, Reply, SendToWorker
from services.online_router.core import RouterCore
from services.online_router.events import CancelReceived, JournalAppended, WorkerAnswered
from services.online_router.options import RouterOptions
from services.online_router.placement import RUNNING_PER_WAITING
from services.online_router.sessions import Phase
from tests.unit.online_router.conftest import Desk

ECHOES_UNTIL_DEAD = 12
Action = tuple[
    Literal[
        "submit", "commit", "take", "answer", "report", "finish", "kill", "join", "cancel", "refuse"
    ],
    int,
]
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ("submit",) * 8
            + ("commit", "take", "answer", "report", "finish") * 3
            + ("join", "join", "kill", "cancel", "refuse")
        ),
        st.integers(0, 5),
    ),
    min_size=30,
    max_size=60,
)


@dataclass
class Worker:
    """Holds what it was told to, and says so when it is asked."""

    slots: int
    inbox: list[StartSession] = field(default_factory=list)
    held: dict[str, StartSession] = field(default_factory=dict)
    unanswered: list[StartSession] = field(default_factory=list)


class Fleet:
    """One router and its workers, which are a step behind as the actions have it."""

    def __init__(self) -> None:
        self.desk = Desk(RouterCore(RouterOptions(router_id="router-a", aliases=("tiny",))))
        self.workers: dict[str, Worker] = {}
        self.appends: list[AppendJournal] = []
        self.ends: Counter[str] = Counter()
        self.requests = 0
        self.workers_joined = 0

    def act(self, action: Action) -> None:
        kind, number = action
        self.desk.now_ns += 1
        named = sorted(self.workers)
        worker_id = named[number % len(named)] if named else ""
        match kind:
            case "submit":
                self._submit(priority=number % 3 - 1)
            case "commit":
                self._commit()
            case "join":
                self._join(slots=1 + number)
            case "cancel":
                cancellation = CancelRequest(request_id=f"r{number}")
                self.desk.tell(CancelReceived(cancellation=cancellation, cause_id="t"))
            case _ if not worker_id:
                return
            case "report":
                self._report(worker_id)
            case "take":
                self._take(worker_id)
            case "answer":
                self._answer(worker_id)
            case "finish":
                self._finish(worker_id)
            case "refuse":
                self._refuse(worker_id)
            case "kill":
                del self.workers[worker_id]
                self._miss(worker_id)
        self._note_commands()
        self._check()

    def heal(self) -> None:
        """Nothing is lost any more, and a worker stays."""
        self._join(slots=4)
        for _ in range(200):
            self._note_commands()
            self._commit()
            self._note_commands()
            for worker_id, worker in self.workers.items():
                self._take(worker_id)
                while worker.unanswered:
                    self._answer(worker_id)
                    self._note_commands()
                self._finish(worker_id)
                self._note_commands()
                self._report(worker_id)
                self._note_commands()
            self._check()
            if not self.desk.core.state.sessions and not self.appends:
                return

    # ------------------------------------------------------------------ what happens

    def _submit(self, *, priority: int) -> None:
        self.requests += 1
        self.desk.submit(f"r{self.requests}", priority=priority)
        if self.workers:
            self.desk.tokenize()
            self.desk.make_claim()
        else:
            self.requests -= 1  # refused: nobody serves

    def _join(self, *, slots: int) -> None:
        self.workers_joined += 1
        worker_id = f"w{self.workers_joined}"
        self.workers[worker_id] = Worker(slots=slots)
        self._report(worker_id)

    def _report(self, worker_id: str) -> None:
        worker = self.workers[worker_id]
        offline = sum(start.spec.priority < 0 for start in worker.held.values())
        offline_running = max(0, min(offline, worker.slots - (len(worker.held) - offline)))
        self.desk.worker_reports(
            worker_id,
            sessions_running_max=worker.slots,
            sessions_running=min(worker.slots, len(worker.held)),
            sessions_waiting=max(0, len(worker.held) - worker.slots),
            offline_running=offline_running,
            offline_waiting=offline - offline_running,
        )

    def _commit(self) -> None:
        if self.appends:
            self.desk.sequence += 1
            stored = JournalAppended(
                op_id=self.appends.pop(0).op_id, sequence=self.desk.sequence, cause_id="t"
            )
            self.desk.tell(stored)

    def _take(self, worker_id: str) -> None:
        worker = self.workers[worker_id]
        worker.held |= {start.spec.request_id: start for start in worker.inbox}
        worker.unanswered += worker.inbox
        worker.inbox.clear()

    def _answer(self, worker_id: str) -> None:
        worker = self.workers[worker_id]
        if worker.unanswered:
            start = worker.unanswered.pop(0)
            answer = SessionStarted(
                worker_id=worker_id,
                request_id=start.spec.request_id,
                session_epoch=start.session_epoch,
            )
            self.desk.tell(WorkerAnswered(answer=answer, cause_id="t"))

    def _refuse(self, worker_id: str) -> None:
        worker = self.workers[worker_id]
        if worker.inbox:
            start = worker.inbox.pop()
            refusal = SessionRefused(
                worker_id=worker_id,
                request_id=start.spec.request_id,
                session_epoch=start.session_epoch,
                reason=RefuseReason.FULL,
            )
            self.desk.tell(WorkerAnswered(answer=refusal, cause_id="t"))

    def _finish(self, worker_id: str) -> None:
        worker = self.workers[worker_id]
        if worker.held:
            start = worker.held.pop(next(iter(worker.held)))
            self.desk.tokens(
                len(start.generated_token_ids),
                request_id=start.spec.request_id,
                session_epoch=start.session_epoch,
                worker_id=worker_id,
                finish_reason=FinishReason.STOP,
            )

    def _miss(self, lost: str) -> None:
        for _ in range(ECHOES_UNTIL_DEAD):
            for worker_id in self.workers:
                self._report(worker_id)
                self._note_commands()
            self.desk.echo()
            self._note_commands()
        assert lost not in self.desk.core.state.workers

    def _note_commands(self) -> None:
        commands, self.desk.commands = self.desk.commands, []
        for command in commands:
            match command:
                case AppendJournal():
                    self.appends.append(command)
                case Reply(message=RequestFinished() as message):
                    self.ends[message.request_id] += 1
                case SendToWorker(message=StartSession() as start):
                    if command.worker_id in self.workers:
                        self.workers[command.worker_id].inbox.append(start)
                case SendToWorker(message=EndSession() as end):
                    if command.worker_id in self.workers:
                        self.workers[command.worker_id].held.pop(end.request_id, None)

    # ------------------------------------------------------------------ what must hold

    def _check(self) -> None:
        state = self.desk.core.state
        charges = Counter(r for placed in state.placed.values() for r in placed)
        for request_id, session in state.sessions.items():
            is_in_charge = session.phase in (Phase.PLACED, Phase.OPENING)
            assert charges[request_id] <= is_in_charge, request_id
        assert state.sessions_waiting == sum(
            session.phase is Phase.WAITING for session in state.sessions.values()
        )
        for worker_id, worker in self.workers.items():
            most = worker.slots + 1 + worker.slots // RUNNING_PER_WAITING
            online = [
                r for r in state.placed.get(worker_id, ()) if not state.sessions[r].is_offline
            ]
            assert len(online) <= most, worker_id


@given(ACTIONS)
@settings(max_examples=60, deadline=None)
def test_every_session_is_in_one_place_or_waits_and_ends_once(actions: list[Action]) -> None:
    fleet = Fleet()
    fleet.act(("join", 1))
    for action in actions:
        fleet.act(action)
    fleet.heal()
    assert not fleet.desk.core.state.sessions
    assert set(fleet.ends.values()) <= {1}

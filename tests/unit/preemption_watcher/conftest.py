"""A watcher core whose commands are carried out by the test, under clocks that the test moves."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.preemption import (
    ConfirmEvacuation,
    Notice,
    NoticeAnswer,
    NoticeKind,
    NoticeRequest,
    NoticeWithdrawn,
    PreemptionNotice,
    RaiseNotice,
    WithdrawNotice,
)
from libs.contracts.wire import Encoding
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.units import NS_PER_MS, NS_PER_S
from services.preemption_watcher.commands import (
    AnswerRequest,
    ConfirmToSource,
    LogOutcome,
    Outcome,
    PollSource,
    PublishNotice,
    StopProcess,
    TellWorkers,
    WatcherCommand,
)
from services.preemption_watcher.core import WatcherCore
from services.preemption_watcher.events import (
    Asker,
    RequestReceived,
    SourceFailed,
    SourceObserved,
    WatcherEvent,
    WatcherStarted,
    WorkerConnected,
)
from services.preemption_watcher.options import SourceOptions, WatcherOptions
from services.preemption_watcher.readings import Observation, Reading

START_UNIX_NS = 1_800_000_000 * NS_PER_S
CLOUD = SourceOptions(name="cloud", poll_interval_ns=NS_PER_S)
OTHER = SourceOptions(name="other", poll_interval_ns=NS_PER_S, can_confirm=True)
QUEUE = SourceOptions(name="queue", poll_interval_ns=NS_PER_S, tells_once=True)
REQUESTS = {"raise": RaiseNotice, "withdraw": WithdrawNotice, "confirm": ConfirmEvacuation}


class Watcher:
    """Interprets the core's commands; what it says is kept until taken."""

    def __init__(self, **changes: Any) -> None:
        options = {"node_id": "node-a", "sources": (CLOUD, OTHER, QUEUE), "safety_ns": 2 * NS_PER_S}
        self.core = WatcherCore(WatcherOptions(**{**options, **changes}))
        self.now_ns = 5 * NS_PER_S
        self.wall_step_ns = 0
        self.timers: dict[str, int] = {}
        self.polls: dict[str, str] = {}
        self.published: list[Notice] = []
        self.told: list[TellWorkers] = []
        self.answers: list[NoticeAnswer] = []
        self.confirming: list[ConfirmToSource] = []
        self.logged: list[LogOutcome] = []
        self.is_stopped = False
        self.handle(WatcherStarted(cause_id="start"))

    @property
    def now_unix_ns(self) -> int:
        return START_UNIX_NS + self.now_ns + self.wall_step_ns

    def handle(self, event: WatcherEvent) -> None:
        for command in self.core.handle(event, now_ns=self.now_ns):
            self._interpret(command)
        self.core.check_invariants()

    def observe(self, *readings: Reading, source: str = "cloud", **changes: Any) -> None:
        """End the poll of this source with these readings; one of a queue is never whole."""
        if source not in self.polls:
            self.fire(f"poll/{source}")
        self.handle(
            SourceObserved(
                op_id=self.polls.pop(source),
                source=source,
                observation=Observation(
                    readings=readings, **{"is_whole": source != "queue", **changes}
                ),
                now_unix_ns=self.now_unix_ns,
                cause_id="poll",
            )
        )

    def fail(self, reason: str = "no answer", *, source: str = "cloud") -> None:
        """End the poll of this source with a failure."""
        if source not in self.polls:
            self.fire(f"poll/{source}")
        self.handle(
            SourceFailed(
                op_id=self.polls.pop(source), source=source, reason=reason, cause_id="poll"
            )
        )

    def request(self, name: str, notice_id: str, **changes: Any) -> NoticeAnswer:
        """Ask for something and return the answer."""
        request: NoticeRequest = REQUESTS[name](
            **{"notice_id": notice_id, "node_id": "node-a", **changes}
        )
        self.answers.clear()
        self.handle(
            RequestReceived(
                request=request,
                asker=Asker(reply_to="inbox", encoding=Encoding.MSGPACK),
                now_unix_ns=self.now_unix_ns,
                cause_id=notice_id,
            )
        )
        [answer] = self.answers or [None]
        return answer

    def connect(self, connection_id: int = 1) -> None:
        self.handle(WorkerConnected(connection_id=connection_id, cause_id="worker"))

    def fire(self, key: str) -> None:
        """Let a timer fire now."""
        del self.timers[key]
        self.handle(TimerFired(key=key, cause_id="timer"))

    def advance(self, milliseconds: int) -> None:
        """Let time pass; timers fire when they are due. Polls stay unanswered."""
        end_ns = self.now_ns + milliseconds * NS_PER_MS
        while self.timers:
            key = min(self.timers, key=self.timers.__getitem__)
            if self.timers[key] > end_ns:
                break
            self.now_ns = max(self.now_ns, self.timers[key])
            self.fire(key)
        self.now_ns = end_ns

    def take_published(self) -> list[Notice]:
        taken, self.published = self.published, []
        return taken

    def take_given(self) -> list[PreemptionNotice]:
        """What was published, all of which must be notices that hold."""
        taken = self.take_published()
        assert all(isinstance(notice, PreemptionNotice) for notice in taken)
        return [notice for notice in taken if isinstance(notice, PreemptionNotice)]

    def take_withdrawn(self) -> list[str]:
        """The ids of the withdrawals among what was published."""
        taken = self.take_published()
        return [notice.notice_id for notice in taken if isinstance(notice, NoticeWithdrawn)]

    def take_told(self) -> list[TellWorkers]:
        taken, self.told = self.told, []
        return taken

    def outcomes(self) -> list[Outcome]:
        taken, self.logged = self.logged, []
        return [line.outcome for line in taken]

    def _interpret(self, command: WatcherCommand) -> None:
        match command:
            case PollSource():
                assert command.source not in self.polls, "two polls of one source"
                self.polls[command.source] = command.op_id
            case SetTimer():
                self.timers[command.key] = self.now_ns + command.after_ns
            case PublishNotice():
                self.published.append(command.notice)
            case TellWorkers():
                self.told.append(command)
            case AnswerRequest():
                assert command.reply_to == "inbox"
                self.answers.append(command.answer)
            case ConfirmToSource():
                self.confirming.append(command)
            case LogOutcome():
                self.logged.append(command)
            case StopProcess():
                self.is_stopped = True


def build_reading(notice_id: str = "n", **changes: Any) -> Reading:
    fields = {"kind": NoticeKind.PREEMPTION, "grace_ns": 30 * NS_PER_S, **changes}
    return Reading(notice_id=notice_id, **fields)


@pytest.fixture
def a_watcher() -> Callable[..., Watcher]:
    return Watcher


@pytest.fixture
def a_reading() -> Callable[..., Reading]:
    return build_reading

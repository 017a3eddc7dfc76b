"""Decides what one watcher does: when it asks which source, and which notices it gives to whom.

Theory of operation. Each source has one poll under way or a timer that starts the next: at its
interval after an answer, later and later after failures. What a poll brings is a level: a notice
seen for the first time is raised, one that changed is given anew, one that a whole answer leaves
out is withdrawn. A failure says nothing about notices; they stay.

    reading --first seen--> held --left out, or asked for--> withdrawn --repeats--> forgotten
                             |  ^
                             +--+ seen again, repeated every 2 s with the grace that is left

A notice that its source tells only once (a queue, a signal, a person) is held until well after its
deadline and then forgotten without a word: the node is gone or was spared, and nobody knows which.

The watcher never acts on a deadline. The workers of the node do, each by its own clock.
"""

from dataclasses import dataclass
from typing import assert_never

from libs.contracts.preemption import (
    ConfirmEvacuation,
    Notice,
    NoticeAnswer,
    NoticeRejectReason,
    NoticeRequest,
    NoticeRequestAccepted,
    NoticeRequestRejected,
    RaiseNotice,
    WithdrawNotice,
)
from libs.kernel.core import SetTimer, TimerFired, require
from services.preemption_watcher.commands import (
    AnswerRequest,
    ConfirmToSource,
    LogOutcome,
    Outcome,
    PublishNotice,
    StopProcess,
    TellWorkers,
    WatcherCommand,
)
from services.preemption_watcher.events import (
    Asker,
    ConfirmationFailed,
    EvacuationConfirmed,
    RequestReceived,
    RequestUnreadable,
    SourceFailed,
    SourceObserved,
    StopRequested,
    WatcherEvent,
    WatcherStarted,
    WorkerConnected,
)
from services.preemption_watcher.notices import HeldNotice, NoticeKey, NoticeTable
from services.preemption_watcher.options import MANUAL, WatcherOptions
from services.preemption_watcher.polling import Polling
from services.preemption_watcher.readings import Observation, Reading

REPEAT_TIMER = "repeat"
STOP_TIMER = "stop"


@dataclass(slots=True, kw_only=True)
class WatcherCounters:
    """What happened since the process started, for metrics."""

    notices_raised: int = 0
    notices_changed: int = 0
    notices_withdrawn: int = 0
    notices_expired: int = 0
    notices_refused: int = 0
    """More than may be held at a time."""
    requests_rejected: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Confirmation:
    request: ConfirmEvacuation
    asker: Asker
    source: str


class WatcherCore:
    """The state of one watcher process; see the module for how it works."""

    def __init__(self, options: WatcherOptions) -> None:
        self._options = options
        self._notices = NoticeTable(options)
        self._polling = Polling(options)
        self._confirmations: dict[str, _Confirmation] = {}
        self._confirmations_started = 0
        self._is_repeating = False
        self._is_stopping = False
        self._is_stopped = False
        self._now_ns = 0
        self._cause_id = ""
        self._commands: list[WatcherCommand] = []
        self.counters = WatcherCounters()

    @property
    def notices_held(self) -> int:
        """Notices that hold now, for metrics."""
        return len(self._notices)

    @property
    def polling(self) -> Polling:
        """How the sources are doing, for metrics."""
        return self._polling

    def handle(self, event: WatcherEvent, *, now_ns: int) -> list[WatcherCommand]:
        """Apply one event. After StopProcess nothing follows any more."""
        if self._is_stopped:
            return []
        self._now_ns = now_ns
        self._cause_id = event.cause_id
        self._commands = []
        self._apply(event)
        self._arm_repeat()
        return self._commands

    def check_invariants(self) -> None:
        """Raise InvariantViolation if notices, polls and timers contradict one another."""
        self._notices.check_invariants()
        self._polling.check_invariants()
        if not self._is_stopped:
            require(self._notices.is_quiet or self._is_repeating, "a notice is not repeated")

    def _apply(self, event: WatcherEvent) -> None:
        match event:
            case WatcherStarted():
                self._commands += self._polling.start(cause_id=self._cause_id)
            case SourceObserved():
                self._commands += self._polling.observed(event)
                self._take_in(event.source, event.observation, now_unix_ns=event.now_unix_ns)
            case SourceFailed():
                self._commands += self._polling.failed(event)
            case RequestReceived():
                self._on_request(event)
            case RequestUnreadable():
                self._reject(event.asker, NoticeRejectReason.INVALID, event.reason)
            case EvacuationConfirmed():
                self._on_confirmed(event)
            case ConfirmationFailed():
                pending = self._confirmations.pop(event.op_id)
                self._reject(pending.asker, NoticeRejectReason.UNAVAILABLE, event.reason)
            case WorkerConnected():
                self._tell_workers(connection_id=event.connection_id)
            case StopRequested():
                self._on_stop()
            case TimerFired():
                self._on_timer(event)
            case _:
                assert_never(event)

    def _take_in(self, source: str, observation: Observation, *, now_unix_ns: int) -> None:
        """Bring the notices of this source to what it says now.

        The new are raised before the missing are withdrawn: where one replaces the other, the node
        is never believed safe in between.
        """
        seen: set[NoticeKey] = set()
        changed = False
        for reading in observation.readings:
            key = self._key_of(reading)
            seen.add(key)
            held = self._notices.get(key)
            if held is None:
                changed |= self._raise(reading, source=source, now_unix_ns=now_unix_ns)
            elif held.source == source and held.update(
                reading, now_ns=self._now_ns, now_unix_ns=now_unix_ns
            ):
                self.counters.notices_changed += 1
                self._give(held.message(now_ns=self._now_ns), Outcome.NOTICE_CHANGED)
                changed = True
        if observation.is_whole:
            for held in self._notices:
                if held.source == source and held.key not in seen:
                    self._withdraw(held, detail="the source no longer gives it")
                    changed = True
        if changed:
            self._tell_workers()

    def _raise(self, reading: Reading, *, source: str, now_unix_ns: int) -> bool:
        """Hold and give a new notice; return False if there is no room for it."""
        if self._notices.is_full:
            self.counters.notices_refused += 1
            self._log(Outcome.NOTICE_REFUSED, source=source, detail=reading.notice_id)
            return False
        notice = HeldNotice(
            reading,
            key=self._key_of(reading),
            source=source,
            tells_once=self._polling.tells_once(source),
            now_ns=self._now_ns,
            now_unix_ns=now_unix_ns,
            options=self._options,
        )
        self._notices.add(notice)
        self.counters.notices_raised += 1
        self._give(notice.message(now_ns=self._now_ns), Outcome.NOTICE_RAISED)
        return True

    def _withdraw(self, notice: HeldNotice, *, detail: str) -> None:
        self.counters.notices_withdrawn += 1
        self._give(self._notices.withdraw(notice, detail=detail), Outcome.NOTICE_WITHDRAWN)

    def _give(self, notice: Notice, outcome: Outcome) -> None:
        self._commands.append(PublishNotice(notice=notice, cause_id=self._cause_id))
        self._log(outcome, source=notice.source, detail=notice.detail, notice=notice)

    def _tell_workers(self, *, connection_id: int | None = None) -> None:
        """Send the workers of this node the whole of what concerns it."""
        current: list[Notice] = [notice.message(now_ns=self._now_ns) for notice in self._notices]
        about_node = tuple(
            notice
            for notice in current + self._notices.withdrawals()
            if notice.node_id == self._options.node_id
        )
        if about_node:
            self._commands.append(
                TellWorkers(
                    notices=about_node, connection_id=connection_id, cause_id=self._cause_id
                )
            )

    def _on_request(self, event: RequestReceived) -> None:
        request = event.request
        if request.node_id != self._options.node_id:
            here = f"this is the watcher of {self._options.node_id}"
            self._reject(event.asker, NoticeRejectReason.WRONG_NODE, here)
            return
        if not self._options.is_manual_allowed and not isinstance(request, ConfirmEvacuation):
            here = "this watcher takes no notices by request"
            self._reject(event.asker, NoticeRejectReason.NOT_ALLOWED, here)
            return
        match request:
            case RaiseNotice():
                self._on_raise(request, event)
            case WithdrawNotice():
                held = self._find(request, event.asker)
                if held is not None and held.source != MANUAL:
                    told = f"{request.notice_id} was given by {held.source}"
                    self._reject(event.asker, NoticeRejectReason.OTHER_SOURCE, told)
                elif held is not None:
                    self._withdraw(held, detail="withdrawn by request")
                    self._tell_workers()
                    self._accept(request, event.asker)
            case ConfirmEvacuation():
                held = self._find(request, event.asker)
                if held is not None:
                    self._confirm(request, held, event.asker)

    def _on_raise(self, request: RaiseNotice, event: RequestReceived) -> None:
        reading = Reading(
            notice_id=request.notice_id,
            kind=request.kind,
            grace_ns=request.grace_ns,
            detail=request.detail,
        )
        held = self._notices.find(node_id=request.node_id, notice_id=request.notice_id)
        if held is None:
            if not self._raise(reading, source=MANUAL, now_unix_ns=event.now_unix_ns):
                full = f"{len(self._notices)} notices are held"
                self._reject(event.asker, NoticeRejectReason.FULL, full)
                return
            self._tell_workers()
        self._accept(request, event.asker)

    def _find(self, request: WithdrawNotice | ConfirmEvacuation, asker: Asker) -> HeldNotice | None:
        held = self._notices.find(node_id=request.node_id, notice_id=request.notice_id)
        if held is None:
            unknown = f"no notice {request.notice_id} holds"
            self._reject(asker, NoticeRejectReason.UNKNOWN_NOTICE, unknown)
        return held

    def _confirm(self, request: ConfirmEvacuation, held: HeldNotice, asker: Asker) -> None:
        if not self._polling.can_confirm(held.source):
            self._accept(request, asker)
            return
        self._confirmations_started += 1
        op_id = f"confirm-{self._confirmations_started}"
        self._confirmations[op_id] = _Confirmation(request=request, asker=asker, source=held.source)
        self._commands.append(
            ConfirmToSource(
                op_id=op_id,
                source=held.source,
                notice_id=request.notice_id,
                cause_id=self._cause_id,
            )
        )

    def _on_confirmed(self, event: EvacuationConfirmed) -> None:
        pending = self._confirmations.pop(event.op_id)
        self._accept(pending.request, pending.asker)
        self._log(
            Outcome.EVACUATION_CONFIRMED, source=pending.source, detail=pending.request.notice_id
        )

    def _accept(self, request: NoticeRequest, asker: Asker) -> None:
        accepted = NoticeRequestAccepted(notice_id=request.notice_id, node_id=request.node_id)
        self._answer(asker, accepted)

    def _reject(self, asker: Asker, reason: NoticeRejectReason, message: str) -> None:
        self.counters.requests_rejected += 1
        self._answer(asker, NoticeRequestRejected(reason=reason, message=message))

    def _answer(self, asker: Asker, answer: NoticeAnswer) -> None:
        if asker.reply_to is None:
            return
        self._commands.append(
            AnswerRequest(
                reply_to=asker.reply_to,
                encoding=asker.encoding,
                answer=answer,
                cause_id=self._cause_id,
            )
        )

    def _on_timer(self, event: TimerFired) -> None:
        if event.key == REPEAT_TIMER:
            self._is_repeating = False
            self._repeat()
        elif event.key == STOP_TIMER:
            self._stop()
        else:
            self._commands += self._polling.timer_fired(event.key, cause_id=self._cause_id)

    def _repeat(self) -> None:
        for notice in self._notices.expire(now_ns=self._now_ns):
            self.counters.notices_expired += 1
            self._log(Outcome.NOTICE_EXPIRED, source=notice.source, detail=notice.key.notice_id)
        messages: list[Notice] = [notice.message(now_ns=self._now_ns) for notice in self._notices]
        for message in messages + self._notices.withdrawals():
            self._commands.append(PublishNotice(notice=message, cause_id=self._cause_id))
        self._tell_workers()
        self._notices.count_repeat()

    def _arm_repeat(self) -> None:
        if self._is_repeating or self._notices.is_quiet or self._is_stopped:
            return
        self._is_repeating = True
        self._commands.append(
            SetTimer(key=REPEAT_TIMER, after_ns=self._options.repeat_ns, cause_id=self._cause_id)
        )

    def _on_stop(self) -> None:
        after_ns = self._options.stop_after_ns
        if after_ns is None:
            self._stop()
        elif not self._is_stopping:
            self._is_stopping = True
            self._commands.append(
                SetTimer(key=STOP_TIMER, after_ns=after_ns, cause_id=self._cause_id)
            )

    def _stop(self) -> None:
        self._is_stopped = True
        self._commands.append(StopProcess(cause_id=self._cause_id))

    def _key_of(self, reading: Reading) -> NoticeKey:
        node_id = reading.node_id or self._options.node_id
        return NoticeKey(node_id, reading.kind, reading.notice_id)

    def _log(
        self, outcome: Outcome, *, source: str, detail: str, notice: Notice | None = None
    ) -> None:
        self._commands.append(
            LogOutcome(
                outcome=outcome,
                source=source,
                detail=detail,
                notice=notice,
                cause_id=self._cause_id,
            )
        )

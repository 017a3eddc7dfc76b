"""When each source is asked next, and how it is doing. Pure."""

from dataclasses import dataclass

from libs.kernel.core import SetTimer, require
from services.preemption_watcher.commands import (
    LogOutcome,
    Outcome,
    PollSource,
    WatcherCommand,
)
from services.preemption_watcher.events import SourceFailed, SourceObserved
from services.preemption_watcher.options import SourceOptions, WatcherOptions

TIMER_PREFIX = "poll/"
BACKOFF_DOUBLINGS_MAX = 30
"""Past any bound that could be configured; keeps the shift small after years of failures."""


@dataclass(slots=True, kw_only=True)
class SourceHealth:
    """What the polls of one source came to since the process started."""

    options: SourceOptions
    op_id: str | None = None
    """The poll that is under way."""
    polls: int = 0
    failures: int = 0
    failures_in_row: int = 0
    payloads_unreadable: int = 0
    complaint: str | None = None
    """What was logged last; the same again is only counted."""


class Polling:
    """Polls every source for ever, one poll of each at a time."""

    def __init__(self, options: WatcherOptions) -> None:
        self._options = options
        self.sources = {source.name: SourceHealth(options=source) for source in options.sources}

    def can_confirm(self, source: str) -> bool:
        """Whether the source's cloud wants to know of an evacuation."""
        return source in self.sources and self.sources[source].options.can_confirm

    def tells_once(self, source: str) -> bool:
        """Whether the source gives each notice a single time; a person does, too."""
        return source not in self.sources or self.sources[source].options.tells_once

    def start(self, *, cause_id: str) -> list[WatcherCommand]:
        """Ask every source."""
        return [self._poll(health, cause_id=cause_id) for health in self.sources.values()]

    def timer_fired(self, key: str, *, cause_id: str) -> list[WatcherCommand]:
        """Ask the source whose time has come; a firing that nobody expects asks nobody."""
        health = self.sources.get(key.removeprefix(TIMER_PREFIX))
        if health is None or health.op_id is not None:
            return []
        return [self._poll(health, cause_id=cause_id)]

    def observed(self, event: SourceObserved) -> list[WatcherCommand]:
        """Take an answer: the next poll comes at the source's interval."""
        health = self._end_poll(event.source, event.op_id)
        health.failures_in_row = 0
        health.payloads_unreadable += len(event.observation.unreadable)
        complaint = "; ".join(event.observation.unreadable) or None
        commands = self._complain(
            health, Outcome.SOURCE_UNREADABLE, complaint, cause_id=event.cause_id
        )
        timer = self._timer(health, health.options.poll_interval_ns, cause_id=event.cause_id)
        return [*commands, timer]

    def failed(self, event: SourceFailed) -> list[WatcherCommand]:
        """Take a failure: the next poll comes the later, the more there were in a row."""
        health = self._end_poll(event.source, event.op_id)
        doublings = min(health.failures_in_row, BACKOFF_DOUBLINGS_MAX)
        backoff_ns = min(self._options.backoff_ns << doublings, self._options.backoff_ns_max)
        health.failures += 1
        health.failures_in_row += 1
        commands = self._complain(
            health, Outcome.SOURCE_FAILED, event.reason, cause_id=event.cause_id
        )
        return [*commands, self._timer(health, backoff_ns, cause_id=event.cause_id)]

    def check_invariants(self) -> None:
        """Raise InvariantViolation if a source's counts contradict one another."""
        for name, health in self.sources.items():
            require(health.failures_in_row <= health.failures <= health.polls, f"{name} miscounts")

    def _poll(self, health: SourceHealth, *, cause_id: str) -> PollSource:
        health.polls += 1
        health.op_id = f"{health.options.name}-{health.polls}"
        return PollSource(op_id=health.op_id, source=health.options.name, cause_id=cause_id)

    def _end_poll(self, source: str, op_id: str) -> SourceHealth:
        health = self.sources[source]
        require(health.op_id == op_id, f"{source}: {op_id} ends, but {health.op_id} is under way")
        health.op_id = None
        return health

    def _complain(
        self, health: SourceHealth, outcome: Outcome, complaint: str | None, *, cause_id: str
    ) -> list[WatcherCommand]:
        """Log what is wrong once, and once that it is right again."""
        if complaint == health.complaint:
            return []
        health.complaint = complaint
        return [
            LogOutcome(
                outcome=Outcome.SOURCE_RECOVERED if complaint is None else outcome,
                source=health.options.name,
                detail=complaint or "",
                cause_id=cause_id,
            )
        ]

    def _timer(self, health: SourceHealth, after_ns: int, *, cause_id: str) -> SetTimer:
        key = f"{TIMER_PREFIX}{health.options.name}"
        return SetTimer(key=key, after_ns=after_ns, cause_id=cause_id)

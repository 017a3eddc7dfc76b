"""Which lines start now and at which priority, and how many to lease for what will be free next."""

from collections.abc import Mapping, Sequence
from typing import Final

from libs.contracts.batches import OFFLINE_PRIORITY
from libs.policy.deadlines import priority_at
from services.offline_queue.commands import FailLine, QueueCommand, StartLine
from services.offline_queue.counters import QueueCounters
from services.offline_queue.harvest import Harvest
from services.offline_queue.holding import Holding
from services.offline_queue.intake import Choice, Intake, Source
from services.offline_queue.options import QueueOptions
from services.offline_queue.surveying import Surveying

EXPIRED_CODE: Final = "expired"
GIVEN_UP_CODE: Final = "given_up"
LINES_AHEAD_MIN: Final = 4
"""Lines held ready beyond those that run, so that a free place is filled at once."""


class TakingUp:
    """Chooses among what is held; changes what runs, and owns nothing."""

    def __init__(
        self,
        options: QueueOptions,
        *,
        intake: Intake,
        harvest: Harvest,
        surveying: Surveying,
        holding: Holding,
        counters: QueueCounters,
    ) -> None:
        self._options = options
        self._intake = intake
        self._harvest = harvest
        self._surveying = surveying
        self._holding = holding
        self._counters = counters

    def take_up(self, *, now_ns: int, now_unix_s: int, cause_id: str) -> list[QueueCommand]:
        """Start what may start, in order; then lease what is wanted next."""
        commands: list[QueueCommand] = []
        ranked = self._intake.ranked(urgent=self._surveying.urgent(now_unix_s=now_unix_s))
        free = {
            alias: self.lines_max(alias) - self._intake.running(alias) for alias in self.aliases()
        }
        for source in ranked:
            while (choice := self._intake.next_of(source, now_ns=now_ns)) is not None:
                if choice.part.is_given_up:
                    told = f"taken up {self._options.deliveries_max} times, never to its end"
                    failing = self.fail(choice, GIVEN_UP_CODE, message=told, cause_id=cause_id)
                    commands.append(failing)
                elif source.deadline_at_ns <= now_ns:
                    if source.source_id in self._surveying:
                        break  # its clerk tells of all lines that are missing at the end
                    self._counters.lines_expired += 1
                    told = "its deadline has passed"
                    commands.append(
                        self.fail(choice, EXPIRED_CODE, message=told, cause_id=cause_id)
                    )
                elif free[source.alias] > 0:
                    free[source.alias] -= 1
                    priority = self._priority(source, now_ns=now_ns, now_unix_s=now_unix_s)
                    commands.append(
                        self._start(choice, priority=priority, now_ns=now_ns, cause_id=cause_id)
                    )
                else:
                    break
        return [*commands, *self._lease(ranked, free, now_ns=now_ns, cause_id=cause_id)]

    def fail(self, choice: Choice, code: str, *, message: str, cause_id: str) -> FailLine:
        """Have a line end without an answer."""
        self._intake.start(choice, is_urgent=False)
        return FailLine(
            part_key=choice.part.part_key,
            line=choice.line.waiting.line,
            code=code,
            message=message,
            cause_id=cause_id,
        )

    def aliases(self) -> list[str]:
        """Return the models of which something is held or open."""
        return sorted({source.alias for source in self._intake.sources.values()})

    def lines_max(self, alias: str) -> int:
        """Return how many lines of a model may run."""
        return self._harvest.lines_max(
            alias,
            running=self._intake.running(alias),
            tokens_per_line=self._surveying.tokens_per_line(alias),
        )

    def _start(self, choice: Choice, *, priority: int, now_ns: int, cause_id: str) -> StartLine:
        self._counters.lines_started += 1
        self._intake.start(choice, is_urgent=priority > OFFLINE_PRIORITY)
        self._harvest.line_started(choice.source.alias)
        return StartLine(
            part_key=choice.part.part_key,
            line=choice.line.waiting.line,
            attempt=choice.line.attempts,
            priority=priority,
            expires_after_ns=choice.source.deadline_at_ns - now_ns,
            cause_id=cause_id,
        )

    def _priority(self, source: Source, *, now_ns: int, now_unix_s: int) -> int:
        """Return the priority of the source's next line; only a reserved share may be raised."""
        reserved = self._options.urgent_share * self.lines_max(source.alias)
        if self._intake.urgent() >= max(1.0, reserved):
            return OFFLINE_PRIORITY
        laxity_ns = self._surveying.laxity_ns(source.source_id, now_unix_s=now_unix_s)
        if laxity_ns is None:
            laxity_ns = source.deadline_at_ns - now_ns
        slack_ns = min(self._options.slack_ns, source.window_ns // 4)
        return priority_at(laxity_ns, slack_ns=max(1, slack_ns), priority_idle=OFFLINE_PRIORITY)

    def _lease(
        self, ranked: Sequence[Source], free: Mapping[str, int], *, now_ns: int, cause_id: str
    ) -> list[QueueCommand]:
        wanted = {
            alias: max(LINES_AHEAD_MIN, self.lines_max(alias) // 2) + max(0, lines)
            for alias, lines in free.items()
        }
        return self._holding.lease(ranked, lines_wanted=wanted, now_ns=now_ns, cause_id=cause_id)

"""What becomes of whole batches: how far they are, what is due when, whose turn a task is.

Level over edge: nobody counts lines down. Each open batch is surveyed every few seconds, and what
the streams hold says what has to be done; a lost message or a dead queue only delays it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from libs.contracts.batches import BatchRecord, BatchStatus
from libs.kernel.units import NS_PER_S
from libs.policy.deadlines import DueWork, laxity_ns, least_laxity_ns
from libs.policy.demand import OfflineWork, offline_tokens_per_s
from services.offline_queue.commands import AskForTask, ChangeBatch, QueueCommand, SurveyBatch
from services.offline_queue.events import BatchSurveyed
from services.offline_queue.harvest import Harvest
from services.offline_queue.options import QueueOptions
from services.offline_queue.records import Counted

TOKENS_PER_LINE_ASSUMED: Final = 512
"""Of prompt and answer, where there are only jobs."""
SURVEYS_MAX: Final = 64
"""Batches looked at in one interval; with more of them each waits for its turn."""
NOBODY_SERVES: Final = "no worker serves"
MEMORY: Final = 0.95
"""Weight of the past in the mean of a batch's lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What all queues together have before them."""

    batches_open: int
    lines_left: int
    tokens: int
    tokens_per_s: float
    """The least rate at which no deadline is missed."""
    laxity_s_min: float | None


class Surveying:
    """Open batches by id; mutable, owned by the core."""

    def __init__(self, options: QueueOptions, harvest: Harvest) -> None:
        self._options = options
        self._harvest = harvest
        self._rate = harvest.rate
        self._open: dict[str, BatchRecord] = {}
        self._tokens_per_line: dict[str, float] = {}
        self._surveyed_last = ""
        self._changes = 0
        self._laxities: dict[str, int] = {}
        self._laxities_of: tuple[int, int] | None = None
        """The second and the change count that they were worked out for."""

    def __contains__(self, batch_id: object) -> bool:
        return batch_id in self._open

    def put(self, record: BatchRecord) -> None:
        """Take a record; a final batch is forgotten."""
        self._changes += 1
        if record.status.is_final:
            self.forget(record.batch_id)
        else:
            self._open[record.batch_id] = record

    def forget(self, batch_id: str) -> None:
        """The batch is no concern of ours any more."""
        self._changes += 1
        self._open.pop(batch_id, None)
        self._tokens_per_line.pop(batch_id, None)

    def in_progress(self) -> Iterator[BatchRecord]:
        """Yield the batches whose lines may be taken up, by id."""
        for batch_id in sorted(self._open):
            if self._open[batch_id].status is BatchStatus.IN_PROGRESS:
                yield self._open[batch_id]

    def observe_line(self, batch_id: str, *, tokens: int) -> None:
        """Learn from a line what the others may take."""
        if batch_id in self._open:
            before = self._tokens_per_line.get(batch_id, float(tokens))
            self._tokens_per_line[batch_id] = MEMORY * before + (1 - MEMORY) * tokens

    def tokens_per_line(self, alias: str) -> int:
        """Return what a line of this model takes, as far as known."""
        known = [
            self._tokens_per_line_of(record)
            for record in self.in_progress()
            if record.alias == alias
        ]
        return round(max(known)) if known else TOKENS_PER_LINE_ASSUMED

    # ------------------------------------------------------------------ surveys

    def survey(self, *, cause_id: str) -> list[QueueCommand]:
        """Have the next open batches looked at, in turn."""
        after = sorted(batch_id for batch_id in self._open if batch_id > self._surveyed_last)
        turn = after[:SURVEYS_MAX]
        self._surveyed_last = turn[-1] if len(after) > SURVEYS_MAX else ""
        return [SurveyBatch(batch_id=batch_id, cause_id=cause_id) for batch_id in turn]

    def survey_one(self, batch_id: str, *, cause_id: str) -> list[QueueCommand]:
        """Have one looked at now: its last part may just have been acknowledged."""
        return [SurveyBatch(batch_id=batch_id, cause_id=cause_id)]

    def surveyed(self, event: BatchSurveyed, *, now_unix_s: int) -> list[QueueCommand]:
        """Bring the record up to date, and ask for a task where one is needed."""
        record = self._open.get(event.batch_id)
        if record is None:
            return []
        commands: list[QueueCommand] = []
        if record.status is BatchStatus.IN_PROGRESS:
            commands += self._counted(record, event, now_unix_s)
        if event.tasks_left == 0 and _needs_a_task(record, event, now_unix_s):
            commands.append(AskForTask(batch_id=event.batch_id, cause_id=event.cause_id))
        return commands

    def _counted(
        self, record: BatchRecord, event: BatchSurveyed, now_unix_s: int
    ) -> list[QueueCommand]:
        counts = record.counts
        warning = self.warning(record, now_unix_s=now_unix_s)
        is_known = (counts.completed, counts.failed) == (event.completed, event.failed)
        if is_known and _is_as_good(warning, record.warning):
            return []
        change = Counted(completed=event.completed, failed=event.failed, warning=warning)
        return [ChangeBatch(batch_id=record.batch_id, change=change, cause_id=event.cause_id)]

    # ------------------------------------------------------------------ deadlines

    def due(self, *, now_unix_s: int) -> Due:
        """Return what is left of all batches."""
        least_ns = least_laxity_ns(
            self._work(), now_ns=now_unix_s * NS_PER_S, tokens_per_s=self._rate.tokens_per_s
        )
        return Due(
            batches_open=len(self._open),
            lines_left=sum(_lines_left(record) for record in self._open.values()),
            tokens=sum(map(self._tokens_left, self._open.values())),
            tokens_per_s=offline_tokens_per_s(self._offline_work(now_unix_s)),
            laxity_s_min=None if least_ns is None else least_ns / NS_PER_S,
        )

    def laxity_ns(self, batch_id: str, *, now_unix_s: int) -> int | None:
        """Return the batch's time to spare behind all that is due before; None: no such batch."""
        key = (now_unix_s, self._changes)
        if key != self._laxities_of:
            self._laxities_of = key
            self._laxities = self._worked_out(now_unix_s)
        return self._laxities.get(batch_id)

    def _worked_out(self, now_unix_s: int) -> dict[str, int]:
        tokens, found = 0, {}
        by_deadline = sorted(self._open.values(), key=lambda r: (r.deadline_at_unix_s, r.batch_id))
        for record in by_deadline:
            tokens += self._tokens_left(record)
            found[record.batch_id] = laxity_ns(
                now_ns=now_unix_s * NS_PER_S,
                deadline_at_ns=record.deadline_at_unix_s * NS_PER_S,
                tokens=tokens,
                tokens_per_s=self._rate.tokens_per_s,
            )
        return found

    def urgent(self, *, now_unix_s: int) -> frozenset[str]:
        """Return the batches with little time to spare."""
        return frozenset(
            record.batch_id
            for record in self.in_progress()
            if (self.laxity_ns(record.batch_id, now_unix_s=now_unix_s) or 0)
            < min(
                self._options.slack_ns,
                (record.deadline_at_unix_s - record.created_at_unix_s) * NS_PER_S // 4,
            )
        )

    def warning(self, record: BatchRecord, *, now_unix_s: int) -> str:
        """Say why the batch is not likely to be answered in time, if it is not."""
        if record.alias is not None and not self._harvest.is_served(record.alias):
            return f"{NOBODY_SERVES} {record.alias}: the lines wait until one does"
        laxity = self.laxity_ns(record.batch_id, now_unix_s=now_unix_s)
        if laxity is None or laxity >= 0:
            return ""
        late_s = -laxity // NS_PER_S
        return (
            f"at the present rate of {self._rate.tokens_per_s:.0f} tokens/s this batch would be"
            f" about {late_s} s late; lines not answered by its deadline will expire"
        )

    def _work(self) -> list[DueWork]:
        return [
            DueWork(
                tokens=self._tokens_left(record), due_at_ns=record.deadline_at_unix_s * NS_PER_S
            )
            for record in self._open.values()
        ]

    def _offline_work(self, now_unix_s: int) -> list[OfflineWork]:
        """The same, as the planner's arithmetic wants it."""
        return [
            OfflineWork(
                tokens=work.tokens, due_after_ns=max(0, work.due_at_ns - now_unix_s * NS_PER_S)
            )
            for work in self._work()
        ]

    def _tokens_left(self, record: BatchRecord) -> int:
        return round(_lines_left(record) * self._tokens_per_line_of(record))

    def _tokens_per_line_of(self, record: BatchRecord) -> float:
        """Return the mean of the lines seen here, else what was predicted."""
        predicted = record.tokens_predicted / max(1, record.counts.total)
        return self._tokens_per_line.get(record.batch_id, predicted)


def _lines_left(record: BatchRecord) -> int:
    return record.counts.total - record.counts.completed - record.counts.failed


def _needs_a_task(record: BatchRecord, event: BatchSurveyed, now_unix_s: int) -> bool:
    """Whether a clerk has to look at it: see Clerk for what follows."""
    if record.status is not BatchStatus.IN_PROGRESS:
        return True
    return event.parts_left == 0 or record.deadline_at_unix_s <= now_unix_s


def _is_as_good(warning: str, other: str) -> bool:
    """Whether two warnings say the same, but for figures that change with every survey."""
    kinds = [(bool(text), text.startswith(NOBODY_SERVES)) for text in (warning, other)]
    return kinds[0] == kinds[1]

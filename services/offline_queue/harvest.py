"""How many lines may run: what online traffic leaves of the fleet, as far as one queue can see.

Two bounds, the lower one counts. Capacity: the KV blocks that workers report as free, in lines,
shared with the other queues; a worker in which sessions wait has none. And a window per model that
grows with each line that ends well and halves when a router has no room: what reports cannot tell,
or tell too late. Source: additive increase, multiplicative decrease (Chiu and Jain 1989), which
makes the windows of several queues equal.
"""

from dataclasses import dataclass, field
from typing import Final

from libs.contracts.reports import OfflineQueueReport, WorkerReport
from libs.kernel.units import NS_PER_S

WINDOW_FIRST: Final = 8
WINDOW_MIN: Final = 1
HALVE_AGAIN_NS: Final = 1 * NS_PER_S
"""Rejections of one burst are one sign of congestion."""
RATE_MEMORY_NS: Final = 60 * NS_PER_S
RATE_BUSY_NS_MIN: Final = 5 * NS_PER_S
"""Before so much busy time nothing is predicted from it."""


@dataclass(slots=True)
class Window:
    """Additive increase, multiplicative decrease."""

    lines: int = WINDOW_FIRST
    _halved_at_ns: int | None = None

    def grow(self, *, lines_max: int) -> None:
        """A line ended well."""
        self.lines = min(self.lines + 1, lines_max)

    def halve(self, *, now_ns: int) -> None:
        """A router had no room."""
        if self._halved_at_ns is None or now_ns - self._halved_at_ns >= HALVE_AGAIN_NS:
            self._halved_at_ns = now_ns
            self.lines = max(WINDOW_MIN, self.lines // 2)


@dataclass(slots=True)
class _Heard:
    report: WorkerReport
    at_ns: int
    lines_started: int = 0
    """Since then, which the report does not show."""


@dataclass(slots=True)
class HarvestRate:
    """Tokens per second that all queues together harvest while they have lines running.

    A mean over busy time that forgets: what is RATE_MEMORY_NS old counts half.
    """

    _tokens_at: dict[str, int] = field(default_factory=dict)
    _tokens_new: int = 0
    _tokens: float = 0.0
    _busy_ns: float = 0.0
    _observed_at_ns: int | None = None

    @property
    def tokens_per_s(self) -> float:
        """The rate; 0 as long as too little was seen."""
        if self._busy_ns < RATE_BUSY_NS_MIN:
            return 0.0
        return self._tokens * NS_PER_S / self._busy_ns

    def hear(self, report: OfflineQueueReport) -> None:
        """Take what a queue has harvested since it was heard last."""
        before = self._tokens_at.get(report.queue_id, report.tokens_harvested)
        self._tokens_at[report.queue_id] = report.tokens_harvested
        self._tokens_new += max(0, report.tokens_harvested - before)

    def observe(self, *, now_ns: int, is_busy: bool) -> None:
        """Bring the rate up to date; idle time says nothing of what could be harvested."""
        since_ns, self._observed_at_ns = self._observed_at_ns, now_ns
        tokens, self._tokens_new = self._tokens_new, 0
        if since_ns is None or not (is_busy or tokens):
            return
        kept = 0.5 ** ((now_ns - since_ns) / RATE_MEMORY_NS)
        self._tokens = self._tokens * kept + tokens
        self._busy_ns = self._busy_ns * kept + (now_ns - since_ns)

    def forget(self, queue_id: str) -> None:
        """A queue has fallen silent."""
        self._tokens_at.pop(queue_id, None)


class Harvest:
    """What is known of workers and other queues, and how much may run by it."""

    def __init__(self, *, lines_max: int, silence_ns: int) -> None:
        self._lines_max = lines_max
        self._silence_ns = silence_ns
        self._workers: dict[str, _Heard] = {}
        self._queues: dict[str, int] = {}
        """When each was heard."""
        self._running_elsewhere: dict[str, int] = {}
        self._windows: dict[str, Window] = {}
        self.rate = HarvestRate()

    def window(self, alias: str) -> Window:
        """Return the window of a model."""
        return self._windows.setdefault(alias, Window())

    def worker_reported(self, report: WorkerReport, *, now_ns: int) -> None:
        """Take a worker's report."""
        self._workers[report.worker_id] = _Heard(report=report, at_ns=now_ns)

    def queue_reported(self, report: OfflineQueueReport, *, now_ns: int) -> None:
        """Take a queue's report, our own included."""
        self._queues[report.queue_id] = now_ns
        self._running_elsewhere[report.queue_id] = report.lines_running
        self.rate.hear(report)

    def line_started(self, alias: str) -> None:
        """Count against what the last reports showed."""
        for heard in self._serving(alias)[:1]:
            heard.lines_started += 1

    def forget_silent(self, *, now_ns: int) -> None:
        """Drop who has not been heard for long."""
        for worker_id, heard in list(self._workers.items()):
            if now_ns - heard.at_ns > self._silence_ns:
                del self._workers[worker_id]
        for queue_id, at_ns in list(self._queues.items()):
            if now_ns - at_ns > self._silence_ns:
                del self._queues[queue_id]
                del self._running_elsewhere[queue_id]
                self.rate.forget(queue_id)

    @property
    def is_busy(self) -> bool:
        """Whether any queue has lines running."""
        return any(self._running_elsewhere.values())

    @property
    def workers(self) -> int:
        """Workers heard lately."""
        return len(self._workers)

    def is_served(self, alias: str) -> bool:
        """Whether a worker that takes sessions of this model was heard lately."""
        return bool(self._serving(alias))

    def lines_max(self, alias: str, *, running: int, tokens_per_line: int) -> int:
        """Return how many lines of this model may run, those that do included.

        At least one wherever a worker serves the model: it finds out whether there is room.
        """
        serving = self._serving(alias)
        if not serving:
            return 0
        free = sum(_lines_free(heard, tokens_per_line) for heard in serving)
        started = sum(heard.lines_started for heard in serving)
        share = max(0, free - started) // max(1, len(self._queues))
        return max(1, min(self.window(alias).lines, self._lines_max, running + share))

    def _serving(self, alias: str) -> list[_Heard]:
        return [
            heard
            for _, heard in sorted(self._workers.items())
            if heard.report.alias == alias
            and heard.report.is_serving
            and not heard.report.is_draining
        ]


def _lines_free(heard: _Heard, tokens_per_line: int) -> int:
    """Lines that fit into the free blocks; none where sessions wait already."""
    report = heard.report
    if report.sessions_waiting > 0:
        return 0
    blocks_per_line = max(1, -(-tokens_per_line // report.block_tokens))
    return report.blocks_free // blocks_per_line

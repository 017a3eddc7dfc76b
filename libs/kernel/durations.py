"""Durations counted by size, and the recent ones: what metrics and reports say of latencies."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import Final

from libs.kernel.ranks import nearest_rank
from libs.kernel.units import NS_PER_MS, NS_PER_S

LATENCY_BOUNDS_NS: Final = tuple(
    milliseconds * NS_PER_MS
    for milliseconds in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 1_500, 2_000, 5_000, 10_000,
                         20_000, 60_000, 300_000)
)  # fmt: skip
"""Upper bounds of the buckets; one more, without a bound, follows."""


class DurationHistogram:
    """Counts durations by bucket since the start, as Prometheus wants them."""

    def __init__(self, bounds_ns: Sequence[int] = LATENCY_BOUNDS_NS) -> None:
        assert list(bounds_ns) == sorted(set(bounds_ns))
        self.bounds_ns = tuple(bounds_ns)
        self.sum_ns = 0
        self._counts = [0] * (len(bounds_ns) + 1)

    @property
    def count(self) -> int:
        """How many durations there were."""
        return sum(self._counts)

    def observe(self, duration_ns: int) -> None:
        """Count one; a duration equal to a bound belongs below it."""
        self._counts[bisect_left(self.bounds_ns, duration_ns)] += 1
        self.sum_ns += duration_ns

    def cumulative(self) -> list[int]:
        """Return how many were at most each bound, and last how many there were."""
        total = 0
        counts = []
        for count in self._counts:
            total += count
            counts.append(total)
        return counts


class RecentDurations:
    """The durations of the last while; past `entries_max` the oldest are forgotten first.

    Kept in order of size too: a router reports five times a second, and simulations many more.
    """

    def __init__(self, *, window_ns: int = 60 * NS_PER_S, entries_max: int = 1024) -> None:
        self._window_ns = window_ns
        self._entries_max = entries_max
        self._entries: deque[tuple[int, int]] = deque()
        self._sorted_ns: list[int] = []

    def observe(self, duration_ns: int, *, now_ns: int) -> None:
        """Remember one."""
        self._entries.append((now_ns, duration_ns))
        insort(self._sorted_ns, duration_ns)
        if len(self._entries) > self._entries_max:
            self._forget_oldest()

    def quantiles_ns(self, *quantiles: float, now_ns: int) -> list[int | None]:
        """Return the nearest rank of each among those of the window; None if it is empty."""
        while self._entries and self._entries[0][0] < now_ns - self._window_ns:
            self._forget_oldest()
        count = len(self._sorted_ns)
        return [self._sorted_ns[nearest_rank(q, count=count)] if count else None for q in quantiles]

    def _forget_oldest(self) -> None:
        _, duration_ns = self._entries.popleft()
        del self._sorted_ns[bisect_left(self._sorted_ns, duration_ns)]

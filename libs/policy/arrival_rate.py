"""How many requests arrive per second, from counters that reports repeat.

Source: SpotServe section 3.2 observes arrivals over a short past window, such as 30 s. Counters
make a lost report harmless: the next one says what both would have.
"""

from collections import deque

from libs.kernel.bounded import RecentMap
from libs.kernel.units import NS_PER_S

SOURCES_MAX = 1024
"""Routers remembered; past it the one added first is forgotten, and its window starts anew."""
READINGS_MAX = 256
"""Of one source, spread over the window."""


class ArrivalRate:
    """Arrivals over a sliding window, summed over the sources that count them."""

    def __init__(self, *, window_ns: int = 30 * NS_PER_S) -> None:
        assert window_ns > 0
        self._window_ns = window_ns
        self._counts: RecentMap[str, deque[tuple[int, int]]] = RecentMap(entries_max=SOURCES_MAX)

    def observe(self, source_id: str, *, count: int, now_ns: int) -> None:
        """Note that the source has counted so many since its start; a smaller count is ignored."""
        readings = self._counts.get(source_id)
        if readings is None:
            readings = deque()
            self._counts.put(source_id, readings)
        if readings and (count < readings[-1][1] or now_ns < readings[-1][0]):
            return
        # Readings closer than this together add nothing, and would have no bound.
        if len(readings) > 1 and now_ns - readings[-2][0] < self._window_ns // READINGS_MAX:
            readings.pop()
        readings.append((now_ns, count))
        # One reading from before the window stays: the arrivals since then are in it.
        while len(readings) > 1 and readings[1][0] <= now_ns - self._window_ns:
            readings.popleft()

    def per_s(self, *, now_ns: int) -> float:
        """Return the arrivals per second; over a shorter time while the window fills."""
        rate = 0.0
        for readings in self._counts.values():
            started_ns = max(readings[0][0], now_ns - self._window_ns)
            observed_ns = now_ns - started_ns
            if observed_ns > 0 and readings[-1][0] > now_ns - self._window_ns:
                rate += (readings[-1][1] - readings[0][1]) * NS_PER_S / observed_ns
        return rate

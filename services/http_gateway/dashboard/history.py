"""The charts' past: one sample a second, the last ten minutes."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from libs.contracts.reports import RouterReport
from libs.kernel.units import NS_PER_S
from services.http_gateway.dashboard.snapshot import Sample

SAMPLES_MAX: Final = 600


class TokenRates:
    """Tokens per second between two looks, from counters that start anew with their process."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[int, int]] = {}
        self._looked_at_ns: int | None = None

    def look(self, routers: Sequence[RouterReport], *, now_ns: int) -> tuple[float, float]:
        """Return online and offline tokens per second since the last look; 0 at the first.

        A router that was not there at the last look counts from the next one on.
        """
        online = offline = 0
        after: dict[str, tuple[int, int]] = {}
        for report in routers:
            counted = (report.tokens_relayed - report.tokens_offline, report.tokens_offline)
            before = self._before.get(report.router_id, counted)
            online += max(0, counted[0] - before[0])
            offline += max(0, counted[1] - before[1])
            after[report.router_id] = counted
        since_ns = self._looked_at_ns
        self._before, self._looked_at_ns = after, now_ns
        if since_ns is None or now_ns <= since_ns:
            return 0.0, 0.0
        passed_s = (now_ns - since_ns) / NS_PER_S
        return online / passed_s, offline / passed_s


class History:
    """The samples, the oldest first."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)

    def add(self, sample: Sample) -> None:
        """Add the newest."""
        self._samples.append(sample)

    def samples(self) -> tuple[Sample, ...]:
        """Return all of them."""
        return tuple(self._samples)

"""How many blocks offline work leaves free, so that a burst of online work need evict nobody.

The reserve is what online sequences took in the busiest of the last seconds, up to a bound: after a
quiet window it is nothing, after a burst it waits for another. Eviction is always possible besides,
so a reserve that is too small costs offline work some recomputing and online work nothing.
Source: Echo's threshold for bursty online work; here it follows the demand.
"""

from collections import deque
from typing import Final

from libs.kernel.units import NS_PER_S

BUCKET_NS: Final = NS_PER_S
BUCKETS: Final = 30


class BurstReserve:
    """Blocks taken by online sequences, second by second."""

    def __init__(self, *, blocks_max: int) -> None:
        self._blocks_max = blocks_max
        self._buckets: deque[tuple[int, int]] = deque(maxlen=BUCKETS)
        """(second, blocks), in order of time; seconds without any are left out."""

    def note_taken(self, blocks: int, *, now_ns: int) -> None:
        """Count blocks that an online sequence has just been given."""
        bucket = now_ns // BUCKET_NS
        if self._buckets and self._buckets[-1][0] == bucket:
            blocks += self._buckets.pop()[1]
        self._buckets.append((bucket, blocks))

    def blocks(self, *, now_ns: int) -> int:
        """Return the blocks to leave free now."""
        oldest = now_ns // BUCKET_NS - BUCKETS
        while self._buckets and self._buckets[0][0] <= oldest:
            self._buckets.popleft()
        busiest = max((blocks for _, blocks in self._buckets), default=0)
        return min(self._blocks_max, busiest)

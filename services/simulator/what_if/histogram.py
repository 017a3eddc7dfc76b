"""Latencies of any number of requests in bounded memory, with a bounded error."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from libs.kernel.ranks import nearest_rank

BITS: Final = 8
"""Values keep so many leading bits: a percentile is too low by less than 1 in 128."""


@dataclass(slots=True)
class Histogram:
    """Counts whole numbers from 0 by their leading bits; what was counted cannot be told apart."""

    counts: dict[int, int] = field(default_factory=dict)
    """By the least value that counts as the same."""
    total: int = 0

    def add(self, value: int) -> None:
        """Count one value."""
        shift = max(0, value.bit_length() - BITS)
        floor = value >> shift << shift
        self.counts[floor] = self.counts.get(floor, 0) + 1
        self.total += 1

    def merge(self, other: "Histogram") -> None:
        """Count what another one has counted."""
        for floor, count in other.counts.items():
            self.counts[floor] = self.counts.get(floor, 0) + count
        self.total += other.total

    def percentile(self, share: float) -> int:
        """Return the nearest rank, rounded down to what was kept of it; 0 of nothing."""
        if not self.total:
            return 0
        left = nearest_rank(share, count=self.total)
        return _value_at(self.counts, left)


def _value_at(counts: Mapping[int, int], rank: int) -> int:
    for floor in sorted(counts):
        rank -= counts[floor]
        if rank < 0:
            return floor
    raise AssertionError("the rank lies beyond what was counted")

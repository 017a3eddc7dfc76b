"""Ratios over many cells: their geometric mean, and how sure it is; pure arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A geometric mean, with the bounds of its 95 % confidence interval."""

    mean: float
    low: float | None
    """None: a single value has no spread."""
    high: float | None
    values: int

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g}, n={self.values})"


def geometric_mean(ratios: Sequence[float]) -> Interval:
    """Average independent ratios, all above 0; the interval is Student's, of their logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = fmean(logs)
    if len(logs) < 2:
        return Interval(mean=math.exp(mean), low=None, high=None, values=len(logs))
    half = t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return Interval(
        mean=round(math.exp(mean), 4),
        low=round(math.exp(mean - half), 4),
        high=round(math.exp(mean + half), 4),
        values=len(logs),
    )

"""How much shorter than its SLO a step is planned, so that it holds for all but a stated share.

    budget = slo / factor          factor = quantile of observed / predicted at `level`
    level += gain * (missed - share allowed)         at every step that the SLO judges

The budget of a batch is not the SLO: one is a prediction, the other a statement about a
percentile. A fixed factor is too careful where predictions are good and too bold where they are
not. Here the quantile follows the errors and the level follows what was missed, as far as it has
to be and no further.

Guaranteed, whatever the errors and however they change, as long as none exceeds `factor_max`:

    misses among n steps <= share allowed * n + (1 + 2 gain - first level) / gain

because a miss raises the level by `gain`, and from 1 to 1 + gain the factor grows from the largest
error seen to `factor_max`, at which nothing is missed. Source: the bound is that of adaptive
conformal inference (Gibbs and Candes 2021); that the budget is to be searched for the statistical
SLO is HyGen's (section on its SLO-aware profiler, which does it once, offline).
"""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

from libs.kernel.core import require


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginOptions:
    """What is allowed, and how fast it is followed."""

    missed_share_max: float = 0.002
    """Of the steps that the SLO judges. A request is broken by any of its tokens, and steps without
    offline work miss some by themselves: a P99 is kept by much less than 1 %."""
    factor_min: float = 1.0
    """Predictions are never trusted beyond their word."""
    factor_max: float = 3.0
    """Beyond, the budget is nothing but margin; errors above are not the margin's to heal."""
    factor_first: float = 1.2
    """Until enough steps were seen (QoServe's fixed multiplier)."""
    level_min: float = 0.5
    """The quantile never falls below, however long nothing is missed."""
    gain: float = 0.001
    """Of one miss, on the level: three in a row lead to factor_max."""
    window_steps: int = 512
    """Ratios remembered; the oldest goes when another comes."""
    steps_min: int = 32
    """Ratios before the quantile counts."""

    def __post_init__(self) -> None:
        require(0 < self.missed_share_max < 1, "missed_share_max lies between 0 and 1")
        require(0 < self.factor_min <= self.factor_first <= self.factor_max, "factors are amiss")
        require(0 < self.level_min <= 1 - self.missed_share_max, "level_min is above the first")
        require(0 < self.gain <= 1, "gain lies above 0 and at most at 1")
        require(1 <= self.steps_min <= self.window_steps, "steps_min must fit the window")


class SloMargin:
    """The margin of one engine for one SLO; see the head of this file. Deterministic."""

    def __init__(self, options: MarginOptions | None = None) -> None:
        self._options = options or MarginOptions()
        self._ratios: deque[float] = deque()
        self._sorted: list[float] = []
        self._level = 1 - self._options.missed_share_max
        self.steps_judged = 0
        self.steps_missed = 0

    @property
    def factor(self) -> float:
        """By what predictions are multiplied, or the SLO divided."""
        options = self._options
        if len(self._sorted) < options.steps_min:
            quantile = options.factor_first
        else:
            index = min(len(self._sorted) - 1, int(self._level * len(self._sorted)))
            quantile = min(options.factor_max, max(options.factor_min, self._sorted[index]))
        beyond = min(1.0, max(0.0, self._level - 1) / options.gain)
        return quantile + beyond * (options.factor_max - quantile)

    def budget_ns(self, slo_ns: int) -> int:
        """Return what a step may be predicted to take."""
        return int(slo_ns / self.factor)

    def observe(
        self, *, predicted_ns: int, observed_ns: int, is_slo_met: bool | None = None
    ) -> None:
        """Take in a step, and whether it met the SLO; None: the SLO does not judge it."""
        self._remember(observed_ns / max(1, predicted_ns))
        if is_slo_met is None:
            return
        options = self._options
        self.steps_judged += 1
        self.steps_missed += not is_slo_met
        step = options.gain * ((not is_slo_met) - options.missed_share_max)
        self._level = min(1 + 2 * options.gain, max(options.level_min, self._level + step))

    def _remember(self, ratio: float) -> None:
        if len(self._ratios) == self._options.window_steps:
            del self._sorted[bisect_left(self._sorted, self._ratios.popleft())]
        self._ratios.append(ratio)
        insort(self._sorted, ratio)

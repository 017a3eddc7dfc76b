"""Follows how long steps really take: refits the latency model, and says when the profile is off.

    observe(step) -> window of recent steps --every so many--> fit, pulled towards the profile
                  -> error of the predictions in use
                  -> error of the profile --above 25 %--> DRIFTED --below 15 %--> SETTLED

The profile stays what it was; refitting starts from it every time, so errors never add up. A window
that shows one kind of step alone changes only what it shows, save that steps which all take longer
than they should raise the rest as well: a slow machine is slow at everything.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from libs.kernel.core import require
from libs.policy.latency_fit import Prior, StepSample, fit_at_knee, relative_error
from libs.policy.latency_model import LatencyModel, StepWork


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerOptions:
    """How much is remembered, and when it counts."""

    window_steps: int = 256
    """Recent steps that are remembered; the oldest goes when another comes."""
    refit_steps: int = 64
    """Steps between two fits, each of which takes about a millisecond; also before the first."""
    prior_samples: int = 8
    """The profile weighs as much as so many steps of each kind."""
    slowdown_max: float = 4.0
    """Steps may all take so many times as long as profiled and raise the rest with them."""
    drift_error: float = 0.25
    """Mean relative error of the profile from which it has drifted."""
    settled_error: float = 0.15
    """And below which it is right again."""

    def __post_init__(self) -> None:
        require(1 <= self.refit_steps <= self.window_steps, "refit_steps must fit the window")
        require(self.slowdown_max >= 1, "slowdown_max is at least 1")
        require(0 < self.settled_error < self.drift_error, "drift must lie above its end")


class DriftChange(StrEnum):
    """The profile's error went through a threshold."""

    DRIFTED = "drifted"
    """What was profiled is not what runs: measure again, or look at the machine."""
    SETTLED = "settled"


class LatencyTracker:
    """A latency model that learns from the steps of one engine; see the head of this file.

    Deterministic: the same steps lead to the same predictions.
    """

    def __init__(self, profile: LatencyModel, options: TrackerOptions | None = None) -> None:
        self.profile = profile
        self._options = options or TrackerOptions()
        self._model = profile
        self._window: deque[StepSample] = deque(maxlen=self._options.window_steps)
        self._errors: deque[float] = deque(maxlen=self._options.window_steps)
        self._profile_errors: deque[float] = deque(maxlen=self._options.window_steps)
        self._steps_until_fit = self._options.refit_steps
        self._is_drifting = False

    @property
    def model(self) -> LatencyModel:
        """What predictions are made with now."""
        return self._model

    @property
    def error(self) -> float:
        """Mean relative error of the recent predictions, each by the model of its time."""
        return sum(self._errors) / len(self._errors) if self._errors else 0.0

    @property
    def profile_error(self) -> float:
        """Mean relative error that the profile would have had in the same steps."""
        errors = self._profile_errors
        return sum(errors) / len(errors) if errors else 0.0

    @property
    def is_drifting(self) -> bool:
        """Whether the profile is off, by the last change that was told."""
        return self._is_drifting

    def predict_ns(self, work: StepWork) -> int:
        """Return the time of a step."""
        return self._model.predict_ns(work)

    def observe(self, work: StepWork, duration_ns: int) -> DriftChange | None:
        """Take in a step that ran to its end; say if that changed what is to be thought of the
        profile. Steps that yielded, or waited for a peer that was lost, tell nothing; nor do those
        of a clock that stands still, as while an engine warms up."""
        if duration_ns <= 0:
            return None
        sample = StepSample(work=work, duration_ns=duration_ns)
        self._errors.append(relative_error(self._model, sample))
        self._profile_errors.append(relative_error(self.profile, sample))
        self._window.append(sample)
        self._steps_until_fit -= 1
        if self._steps_until_fit == 0:
            self._steps_until_fit = self._options.refit_steps
            self._model = self._refitted()
        return self._drift_change()

    def _refitted(self) -> LatencyModel:
        prior = Prior(
            model=self.profile.times(self._slowdown()), samples=self._options.prior_samples
        )
        return fit_at_knee(tuple(self._window), knee_rows=self.profile.knee_rows, prior=prior)

    def _slowdown(self) -> float:
        """Return how much longer steps take than profiled; never less than 1, because steps of one
        kind that are faster promise nothing of the others."""
        ratios = (
            sample.duration_ns / max(1, self.profile.predict_ns(sample.work))
            for sample in self._window
        )
        return min(self._options.slowdown_max, max(1.0, median(ratios)))

    def _drift_change(self) -> DriftChange | None:
        if len(self._profile_errors) < self._options.refit_steps:
            return None
        error = self.profile_error
        if not self._is_drifting and error > self._options.drift_error:
            self._is_drifting = True
            return DriftChange.DRIFTED
        if self._is_drifting and error < self._options.settled_error:
            self._is_drifting = False
            return DriftChange.SETTLED
        return None

"""Fits a LatencyModel to measured steps.

Least absolute relative error with non-negative coefficients: what is minimised is what is reported,
and a step that the operating system interrupted counts once, not by its square. Found by solving
non-negative least squares a few times, each sample weighted by the inverse of its last residual.

Where samples cannot tell coefficients apart, those of a prior decide: each coefficient is pulled
towards the prior's as if some samples had measured just that. A kind of work that never occurred
keeps the prior's coefficient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from libs.kernel.core import require
from libs.policy.latency_model import LatencyModel, StepWork

KNEES_TRIED: Final = (0, 16, 32, 64, 128, 256, 512)
"""Rows; the knee is a power of two on every device, because tiles of a matrix product are."""
REWEIGHTINGS: Final = 6
RESIDUAL_MIN: Final = 1e-3
"""Relative; residuals below weigh alike, so that a sample that is hit by chance does not rule."""
KNEE_GAIN_MIN: Final = 0.9
"""A knee must bring the error below this share of the error without."""

Matrix: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSample:
    """One measured step, or the median of several equal ones."""

    work: StepWork
    duration_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is believed before the samples."""

    model: LatencyModel
    samples: int
    """So many samples weigh as much as the belief in one coefficient."""


def fit_latency_model(samples: Sequence[StepSample]) -> LatencyModel:
    """Return the model of least mean relative error, with a knee where the samples show one.

    The knee must be below the largest step sampled, and there must be at least one sample.
    """
    require(len(samples) > 0, "a latency model needs samples")
    rows_max = max(sample.work.rows for sample in samples)
    best, *others = (
        fit_at_knee(samples, knee_rows=knee) for knee in KNEES_TRIED if knee < rows_max or not knee
    )
    best_error = mean_relative_error(best, samples)
    for model in others:
        error = mean_relative_error(model, samples)
        if error < KNEE_GAIN_MIN * best_error:
            best, best_error = model, error
    return best


def fit_at_knee(
    samples: Sequence[StepSample], *, knee_rows: int, prior: Prior | None = None
) -> LatencyModel:
    """Return the best model with this knee; 0: none."""
    durations_ns = np.array([max(1, sample.duration_ns) for sample in samples], dtype=np.float64)
    relative = _features(samples, knee_rows=knee_rows) / durations_ns[:, None]
    # Columns of one size keep the solver well-conditioned: pairs are a million times the rows.
    sizes = np.sqrt(np.mean(relative**2, axis=0))
    sizes[sizes == 0] = 1.0
    scaled = relative / sizes
    pulls, targets = _pulls(scaled, sizes, prior)
    weights = np.ones(len(samples))
    solution = np.zeros(scaled.shape[1])
    for _ in range(REWEIGHTINGS):
        solution, _ = nnls(
            np.vstack((scaled * weights[:, None], pulls)), np.concatenate((weights, targets))
        )
        residuals = np.abs(scaled @ solution - 1.0)
        weights = 1.0 / np.sqrt(np.maximum(residuals, RESIDUAL_MIN))
        weights /= np.sqrt(np.mean(weights**2))
    return _model(solution / sizes, knee_rows=knee_rows)


def mean_relative_error(model: LatencyModel, samples: Sequence[StepSample]) -> float:
    """Return the mean of |predicted - measured| / measured; 0 without samples."""
    if not samples:
        return 0.0
    return sum(relative_error(model, sample) for sample in samples) / len(samples)


def relative_error(model: LatencyModel, sample: StepSample) -> float:
    """Return |predicted - measured| / measured of one sample."""
    measured_ns = max(1, sample.duration_ns)
    return abs(model.predict_ns(sample.work) - measured_ns) / measured_ns


def _features(samples: Sequence[StepSample], *, knee_rows: int) -> Matrix:
    """Return one row per sample, in the order of `_coefficients`."""
    return np.array(
        [
            (
                1.0,
                sample.work.rows,
                max(0, sample.work.rows - knee_rows) if knee_rows else 0.0,
                sample.work.pairs_prefilled,
                sample.work.tokens_attended,
                sample.work.sequences,
            )
            for sample in samples
        ],
        dtype=np.float64,
    )


def _coefficients(model: LatencyModel) -> Matrix:
    return np.array(
        [
            model.step_ns,
            model.row_ns,
            model.row_past_knee_ns,
            model.pair_prefilled_ns,
            model.token_attended_ns,
            model.sequence_ns,
        ]
    )


def _model(coefficients: Matrix, *, knee_rows: int) -> LatencyModel:
    step, row, row_past_knee, pair, attended, sequence = (float(x) for x in coefficients)
    return LatencyModel(
        step_ns=step,
        row_ns=row,
        pair_prefilled_ns=pair,
        token_attended_ns=attended,
        sequence_ns=sequence,
        row_past_knee_ns=row_past_knee,
        knee_rows=knee_rows,
    )


def _pulls(scaled: Matrix, sizes: Matrix, prior: Prior | None) -> tuple[Matrix, Matrix]:
    """Return equations that say of each coefficient that it is the prior's."""
    columns = scaled.shape[1]
    if prior is None:
        return np.empty((0, columns)), np.empty(0)
    strength = float(np.sqrt(prior.samples))
    return strength * np.eye(columns), strength * _coefficients(prior.model) * sizes

"""Ratios are averaged as ratios, and what a few seeds do not show is not claimed."""

import pytest

from benchmarks.gains import geometric_mean
from benchmarks.spotserve import ALL_ARRIVALS, Row, gains_of


def test_twice_and_half_as_fast_is_alike() -> None:
    assert geometric_mean([2.0, 0.5]).mean == pytest.approx(1.0)


def test_the_interval_is_that_of_student() -> None:
    # Logarithms to base e of 1, 2 and 3: mean 2, deviation 1, t of 2 degrees 4.3027.
    found = geometric_mean([2.718281828**value for value in (1, 2, 3)])
    assert found.mean == pytest.approx(7.389, rel=1e-3)
    assert found.low == pytest.approx(2.718281828 ** (2 - 4.3027 / 3**0.5), rel=1e-3)
    assert found.high == pytest.approx(2.718281828 ** (2 + 4.3027 / 3**0.5), rel=1e-3)


def test_one_value_has_no_interval() -> None:
    assert str(geometric_mean([1.5])) == "1.5"


def cell(policy: str, p99_s: float, *, seed: int = 1, cv: str = "poisson") -> Row:
    return {
        "policy": policy, "p99_s": p99_s, "seed": seed, "cv": cv, "model": "m", "trace": "t",
        "on_demand_nodes": None,
    }  # fmt: skip


def test_gains_compare_within_a_cell_and_count_seeds_not_cells() -> None:
    rows = [
        cell("tideserve", 10.0), cell("spotserve", 20.0),
        cell("tideserve", 10.0, cv="gamma:4"), cell("spotserve", 80.0, cv="gamma:4"),
    ]  # fmt: skip
    gains = {(gain.arrivals, gain.over): gain.gain for gain in gains_of(rows)}
    assert gains["poisson", "spotserve"].mean == pytest.approx(2.0)
    assert gains[ALL_ARRIVALS, "spotserve"].mean == pytest.approx(4.0)
    assert gains[ALL_ARRIVALS, "spotserve"].values == 1
    assert ("poisson", "reroute") not in gains

"""Arrivals have exactly the rate and the shape that was asked for."""

from itertools import islice

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from loadgen.arrivals import (
    RateSegment,
    arrivals_over,
    before,
    bursts,
    constant,
    even_gaps,
    exponential_gaps,
    gamma,
    measure_arrivals,
    paced,
    poisson,
    volleys,
)


def test_constant_arrivals_are_evenly_spaced_and_do_not_drift() -> None:
    instants = list(islice(constant(rate_per_s=3.0), 30_000))
    assert instants[:3] == [round(NS_PER_S / 3), round(2 * NS_PER_S / 3), NS_PER_S]
    assert instants[-1] == 10_000 * NS_PER_S


def test_poisson_arrivals_have_their_rate_and_a_cv_of_one() -> None:
    measured = measure_arrivals(list(islice(poisson(Rng(1), rate_per_s=7.0), 20_000)))
    assert measured.rate_per_s == pytest.approx(7.0, rel=0.02)
    assert measured.cv == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize(("cv", "tolerance"), [(0.5, 0.03), (2.0, 0.05), (6.0, 0.1)])
def test_gamma_arrivals_have_the_cv_that_was_asked_for(cv: float, tolerance: float) -> None:
    measured = measure_arrivals(list(islice(gamma(Rng(2), rate_per_s=5.0, cv=cv), 40_000)))
    assert measured.cv == pytest.approx(cv, rel=tolerance)
    assert measured.rate_per_s == pytest.approx(5.0, rel=tolerance)


def test_arrivals_never_go_back_in_time() -> None:
    segments = [
        RateSegment(duration_ns=333_333_333, rate_per_s=rate) for rate in (9.7, 0.0, 1e3, 0.3) * 9
    ]
    instants = list(arrivals_over(exponential_gaps(Rng(3)), segments))
    assert instants == sorted(instants)
    assert instants[-1] <= 36 * 333_333_333


def test_the_rate_of_each_segment_holds_within_it() -> None:
    segments = [RateSegment(duration_ns=10 * NS_PER_S, rate_per_s=rate) for rate in (1.0, 0.0, 4.0)]
    instants = list(arrivals_over(even_gaps(), segments))
    per_segment = [sum(at // (10 * NS_PER_S) == index for at in instants) for index in range(3)]
    # A gap of one that ends exactly with a segment falls to the next in which there is a rate.
    assert per_segment == [9, 0, 40]
    assert instants[9] == 20 * NS_PER_S


def test_bursts_alternate_between_their_two_rates() -> None:
    quiet = RateSegment(duration_ns=20 * NS_PER_S, rate_per_s=1.0)
    burst = RateSegment(duration_ns=5 * NS_PER_S, rate_per_s=40.0)
    end_ns = 200 * 25 * NS_PER_S
    instants = list(before(bursts(Rng(4), quiet=quiet, burst=burst), end_ns=end_ns))
    in_burst = [at for at in instants if at % (25 * NS_PER_S) >= 20 * NS_PER_S]
    assert len(in_burst) == pytest.approx(200 * 200, rel=0.02)
    assert len(instants) - len(in_burst) == pytest.approx(200 * 20, rel=0.06)


def test_volleys_arrive_together() -> None:
    assert list(islice(volleys(requests=2, interval_ns=5), 5)) == [0, 0, 5, 5, 10]


def test_a_replay_at_twice_the_speed_halves_every_instant() -> None:
    assert list(paced([0, 10, 31], speed=2.0)) == [0, 5, 16]


def test_the_same_seed_gives_the_same_arrivals_and_another_gives_others() -> None:
    one, same, other = (
        list(islice(gamma(Rng(seed), rate_per_s=5.0, cv=3.0), 50)) for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate"):
        next(poisson(Rng(0), rate_per_s=rate))


@pytest.mark.parametrize("cv", [0.0, -1.0, float("nan"), 1e9])
def test_a_cv_without_a_gamma_distribution_is_refused(cv: float) -> None:
    with pytest.raises(ConfigError, match="cv"):
        next(gamma(Rng(0), rate_per_s=1.0, cv=cv))


def test_bursts_without_any_arrival_are_refused() -> None:
    pause = RateSegment(duration_ns=1, rate_per_s=0.0)
    with pytest.raises(ConfigError, match="both be 0"):
        bursts(Rng(0), quiet=pause, burst=pause)


def test_measuring_needs_two_different_instants() -> None:
    for instants in ([], [5], [5, 5]):
        with pytest.raises(ConfigError, match="two"):
            measure_arrivals(instants)


def test_measured_statistics_are_those_of_the_gaps() -> None:
    measured = measure_arrivals([0, NS_PER_S, 4 * NS_PER_S])
    assert measured.rate_per_s == 0.5
    assert measured.cv == 0.5  # Gaps of 1 and 3 seconds: a mean of 2, a deviation of 1.
    assert measured.peak_per_s == 1
    assert measured.idle_seconds_share == pytest.approx(2 / 5)

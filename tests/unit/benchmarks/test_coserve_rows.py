"""The co-serving table: percentiles, attainment, harvest, and intervals that slices carry."""

import pytest

from benchmarks.coserve_rows import (
    RequestTimes,
    SliceResult,
    Slos,
    quantile,
    ratios_to,
    row_of,
)
from libs.engine.scheduling.tally import CoserveTally
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS, NS_PER_S

SLOS = Slos(ttft_ns=100 * NS_PER_MS, tbt_ns=20 * NS_PER_MS)


def a_request(*, ttft_ms: float, gaps_ms: tuple[float, ...] = ()) -> RequestTimes:
    at_ns = 5 * NS_PER_S
    times = [at_ns + round(ttft_ms * NS_PER_MS)]
    for gap_ms in gaps_ms:
        times.append(times[-1] + round(gap_ms * NS_PER_MS))
    return RequestTimes(arrival_ns=at_ns, token_at_ns=times)


def a_slice(*requests: RequestTimes, tally: CoserveTally | None = None) -> SliceResult:
    return SliceResult(requests=requests, tally=tally or CoserveTally(), duration_ns=10 * NS_PER_S)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.99, 0),
        ([7], 0.5, 7),
        (range(1, 101), 0.99, 99),
        (range(1, 101), 0.5, 50),
        ([3, 1, 2], 0.0, 1),
        ([3, 1, 2], 1.0, 3),
    ],
)
def test_a_quantile_is_a_value_that_occurred(
    values: list[float], share: float, expected: float
) -> None:
    assert quantile(values, share) == expected


def test_a_row_says_what_online_requests_felt_and_what_was_harvested() -> None:
    requests = [a_request(ttft_ms=ms, gaps_ms=(ms / 10, ms / 5)) for ms in (40, 60, 150)]
    tallies = (
        CoserveTally(tokens_offline=300, tokens_online=100, predicted_ns=80, observed_ns=100),
        CoserveTally(tokens_offline=100, tokens_online=0, predicted_ns=20, observed_ns=10),
    )
    row = row_of(
        "p",
        [a_slice(*requests[:2], tally=tallies[0]), a_slice(requests[2], tally=tallies[1])],
        slos=SLOS,
    )
    assert (row.online_ttft_p50_ms, row.online_ttft_p99_ms) == (60, 150)
    assert row.online_tbt_p99_ms == 30
    assert (row.offline_tok_s, row.total_tok_s) == (20, 25)
    assert row.slo_attainment == pytest.approx(2 / 3, abs=1e-4)
    assert row.prediction_bias == 1.1


def test_one_late_token_breaks_the_promise_of_a_request() -> None:
    assert a_request(ttft_ms=90, gaps_ms=(19, 20)).is_met(SLOS)
    assert not a_request(ttft_ms=90, gaps_ms=(19, 21)).is_met(SLOS)
    assert not a_request(ttft_ms=101).is_met(SLOS)


def slices_of(*, factor: float, scatter: float) -> list[SliceResult]:
    rng = Rng(4).child("times")
    slices = []
    for _ in range(10):
        burst = 1 + scatter * rng.random()
        times = [50 * burst * factor * (1 + rng.random()) for _ in range(40)]
        slices.append(a_slice(*(a_request(ttft_ms=ms, gaps_ms=(ms / 9,)) for ms in times)))
    return slices


def test_a_policy_that_is_half_as_fast_has_a_ratio_of_two_with_a_narrow_interval() -> None:
    baseline = slices_of(factor=1, scatter=0.1)
    ratios = ratios_to(baseline, slices_of(factor=2, scatter=0.1), seed=1)
    for middle, low, high in (ratios.ttft_p99, ratios.tbt_p99):
        assert middle == pytest.approx(2, abs=0.01)
        assert low <= middle <= high
        assert high - low < 0.05


def test_the_baseline_compared_with_itself_is_exactly_one() -> None:
    baseline = slices_of(factor=1, scatter=3)
    assert ratios_to(baseline, baseline, seed=1).ttft_p99 == (1, 1, 1)


def test_bursts_of_their_own_widen_the_interval() -> None:
    baseline = slices_of(factor=1, scatter=0)
    calm = ratios_to(baseline, slices_of(factor=1.5, scatter=0), seed=1).ttft_p99
    wild = ratios_to(baseline, slices_of(factor=1.5, scatter=5), seed=1).ttft_p99
    assert wild[2] - wild[1] > 3 * (calm[2] - calm[1])

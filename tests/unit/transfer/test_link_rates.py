"""What a link delivers, estimated from what it delivered."""

import pytest

from libs.kernel.units import MIB, NS_PER_MS, NS_PER_S
from libs.transfer.link_rates import LinkRateOptions, LinkRates

GB = 1_000_000_000


def measured(*transfers: tuple[int, int]) -> LinkRates:
    rates = LinkRates(LinkRateOptions(memory_bytes=100 * MIB))
    for size, duration_ns in transfers:
        rates.observe("peer", bytes_moved=size, duration_ns=duration_ns)
    return rates


def test_a_link_that_was_never_measured_is_unknown() -> None:
    assert LinkRates().bytes_per_s("peer") is None


def test_the_first_measurement_is_the_estimate() -> None:
    rates = measured((GB, NS_PER_S))
    assert rates.bytes_per_s("peer") == GB


@pytest.mark.parametrize(("size", "duration_ns"), [(0, 5), (5, 0), (-1, 5), (5, -1)])
def test_what_says_nothing_changes_nothing(size: int, duration_ns: int) -> None:
    assert measured((size, duration_ns)).bytes_per_s("peer") is None


def test_a_small_transfer_hardly_counts_and_a_large_one_does() -> None:
    slow_and_small = measured((GB, NS_PER_S), (64 * 1024, 10 * NS_PER_MS)).bytes_per_s("peer")
    slow_and_large = measured((GB, NS_PER_S), (GB, 10 * NS_PER_S)).bytes_per_s("peer")
    assert slow_and_small is not None
    assert slow_and_small > 0.9 * GB
    assert slow_and_large is not None
    assert slow_and_large == pytest.approx(0.1 * GB, rel=0.01)


def test_the_estimate_stays_between_what_was_measured() -> None:
    rate = measured((GB, NS_PER_S), (50 * MIB, NS_PER_S)).bytes_per_s("peer")
    assert rate is not None
    assert 50 * MIB < rate < GB


def test_links_are_apart_and_a_forgotten_one_is_unknown() -> None:
    rates = measured((GB, NS_PER_S))
    rates.observe("other", bytes_moved=5, duration_ns=NS_PER_S)
    rates.forget("peer")
    assert rates.bytes_per_s("peer") is None
    assert rates.bytes_per_s("other") == 5

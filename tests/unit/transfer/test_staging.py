"""Staging memory is used again, and not hoarded."""

from libs.kernel.units import MIB
from libs.transfer.staging import StagingPool


def test_a_buffer_given_back_is_lent_again_if_it_is_large_enough() -> None:
    pool = StagingPool()
    buffer = pool.borrow(MIB + 1)
    assert len(buffer) == 2 * MIB
    pool.give_back(buffer)
    assert pool.borrow(2 * MIB + 1) is not buffer
    assert pool.borrow(5) is buffer
    assert pool.borrow(5) is not buffer


def test_the_smallest_that_fits_is_lent() -> None:
    pool = StagingPool()
    large, small = pool.borrow(3 * MIB), pool.borrow(2 * MIB)
    for buffer in (large, small):
        pool.give_back(buffer)
    assert pool.borrow(MIB) is small


def test_past_its_bound_the_pool_frees_what_was_given_back_first() -> None:
    pool = StagingPool(kept_bytes_max=2 * MIB)
    buffers = [pool.borrow(MIB) for _ in range(3)]
    for buffer in buffers:
        pool.give_back(buffer)
    lent = [pool.borrow(MIB) for _ in range(3)]
    assert [any(buffer is other for other in lent) for buffer in buffers] == [False, True, True]

"""The pool's invariants notice every way in which its books can be wrong."""

from collections.abc import Callable

import pytest

from libs.engine.block_pool import BlockPool
from libs.kernel.errors import InvariantViolation

HASH, OTHER_HASH = 11, 12


def a_pool() -> tuple[BlockPool, list[list[int]]]:
    """Four blocks: two in a table, of which one is published; one cached; one free."""
    pool = BlockPool(blocks_total=4, block_tokens=16)
    table, gone = pool.allocate(2), pool.allocate(1)
    pool.publish(table[0], HASH)
    pool.publish(gone[0], OTHER_HASH)
    pool.release(gone)
    return pool, [table]


def test_a_pool_in_order_passes() -> None:
    pool, tables = a_pool()
    pool.check_invariants(tables)


DAMAGES: dict[str, Callable[[BlockPool], object]] = {
    "references differ": lambda pool: pool._references.__setitem__(0, 2),
    "free twice": lambda pool: pool._free.append(pool._free[0]),
    "free and cached": lambda pool: pool._cached.update({pool._free[0]: None}),
    "an idle block is referenced": lambda pool: pool._free.append(0),
    "3 blocks accounted of 4": lambda pool: pool._free.clear(),
    "hash index disagrees": lambda pool: pool._block_by_hash.update({HASH: 1}),
    "cached block has no hash": lambda pool: pool._forget(2),
    "free block has a hash": lambda pool: pool._free.append(pool._cached.popitem()[0]),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_pool_is_noticed(said: str) -> None:
    pool, tables = a_pool()
    DAMAGES[said](pool)
    with pytest.raises(InvariantViolation, match=said):
        pool.check_invariants(tables)


def test_a_table_without_its_references_is_noticed() -> None:
    pool, tables = a_pool()
    with pytest.raises(InvariantViolation, match="block 0: 1 for 2, block 1: 1 for 2"):
        pool.check_invariants([*tables, *tables])

"""KV goes between replicas of any two shapes, each wanted block once, and nothing late is kept."""

from itertools import product

import pytest

from services.gpu_worker.peers.ports import KvCopyEnd
from tests.integration.gpu_worker_peers.conftest import OpenFleet
from tests.integration.gpu_worker_peers.fleet import (
    CELL_BYTES,
    Fleet,
    random_kv,
    rectangles,
)

SHAPES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4)]
BLOCKS_COPIED = [(1000 + block, block) for block in range(3, 13)]


def replica_bytes(shape: tuple[int, int]) -> int:
    """Return what one block takes on all ranks together; more than once where heads repeat."""
    return CELL_BYTES * sum(len(layers) * len(heads) for layers, heads in rectangles(*shape))


async def copied(fleet: Fleet, source_shape: tuple[int, int], target_shape: tuple[int, int]):
    sources, targets = source_shape[0] * source_shape[1], target_shape[0] * target_shape[1]
    source = fleet.roster("source", source_shape, range(sources))
    target = fleet.roster("target", target_shape, range(sources, sources + targets), epoch=2)
    await fleet.open(source)
    await fleet.open(target)
    kv = random_kv(seed=1)
    await fleet.write(source, kv)
    summary = await fleet.lead(source).network.copy_kv(
        source=source, target=target, ticket_id="t-1", blocks=BLOCKS_COPIED
    )
    return target, kv, summary


@pytest.mark.parametrize(("source_shape", "target_shape"), list(product(SHAPES, SHAPES)), ids=str)
async def test_every_block_arrives_whole_between_any_two_shapes(
    fleet: OpenFleet, source_shape: tuple[int, int], target_shape: tuple[int, int]
) -> None:
    async with fleet(8) as workers:
        target, kv, summary = await copied(workers, source_shape, target_shape)
        assert summary.end is KvCopyEnd.COMPLETE, summary.message
        committed = workers.lead(target).host.committed
        assert list(committed) == [block_hash for block_hash, _ in BLOCKS_COPIED]
        blocks = [(block, committed[block_hash]) for block_hash, block in BLOCKS_COPIED]
        assert workers.differing(target, kv, blocks) == []
        assert summary.bytes_moved == summary.bytes_planned == 10 * replica_bytes(target_shape)
        assert (summary.blocks_moved, summary.blocks_left) == (10, 0)

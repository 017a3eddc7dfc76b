"""A copy is cut into routes, batches and pieces that cover it once."""

from itertools import chain

import pytest

from libs.contracts.peers import BLOCKS_PER_BATCH_MAX
from services.gpu_worker.peers.kv_plan import CopyPlan, copy_plan, pieces_of
from tests.integration.gpu_worker_peers.shapes import (
    CELL_BYTES,
    GEOMETRY,
    KV_HEADS,
    LAYERS,
    MODEL_BLOCK_BYTES,
    roster_of,
)


def a_plan(source: tuple[int, int], target: tuple[int, int]) -> CopyPlan:
    ranks = [(f"s-{rank}", "") for rank in range(source[0] * source[1])]
    targets = [(f"t-{rank}", "") for rank in range(target[0] * target[1])]
    plan = copy_plan(
        roster_of("source", source, ranks), roster_of("target", target, targets), GEOMETRY
    )
    assert plan is not None
    return plan


def test_a_block_costs_what_all_target_ranks_hold_of_it() -> None:
    assert a_plan((2, 2), (1, 1)).bytes_per_block == MODEL_BLOCK_BYTES
    assert a_plan((1, 1), (2, 2)).bytes_per_block == MODEL_BLOCK_BYTES
    doubled = a_plan((1, 1), (1, 8)).bytes_per_block
    assert doubled == 2 * MODEL_BLOCK_BYTES, "eight shards hold each of four heads twice"


def test_every_layer_and_head_has_one_route() -> None:
    plan = a_plan((2, 2), (1, 4))
    for rank in {route.target_rank.worker_id for route in plan.routes}:
        cells = [
            (layer, head)
            for route in plan.routes
            if route.target_rank.worker_id == rank
            for layer in route.layers
            for head in route.heads
        ]
        assert len(cells) == len(set(cells)) == LAYERS * KV_HEADS // 4


def test_the_routes_of_all_sources_are_the_routes_of_the_copy() -> None:
    plan = a_plan((2, 2), (1, 1))
    by_source = plan.by_source()
    assert sorted(by_source) == ["s-0", "s-1", "s-2", "s-3"]
    assert sorted(map(repr, chain(*by_source.values()))) == sorted(map(repr, plan.routes))


def test_a_source_that_lacks_a_needed_rank_has_no_plan() -> None:
    source = roster_of("source", (1, 2), [("s-0", ""), ("s-1", "")])
    maimed = source.model_copy(update={"workers": source.workers[1:]})
    assert copy_plan(maimed, roster_of("target", (1, 1), [("t-0", "")]), GEOMETRY) is None


@pytest.mark.parametrize(("batch_blocks", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_batches_keep_the_order_and_the_bound(batch_blocks: int, sizes: list[int]) -> None:
    plan = a_plan((1, 1), (1, 2))
    blocks = [(100 + n, n, n) for n in range(5)]
    batches = plan.batches(blocks, batch_bytes_max=batch_blocks * plan.bytes_per_block)
    assert [len(batch) for batch in batches] == sizes
    assert list(chain(*batches)) == blocks


def test_a_batch_has_a_block_at_least_and_no_more_than_a_message_may_name() -> None:
    plan = a_plan((1, 1), (1, 1))
    blocks = [(n, n, n) for n in range(BLOCKS_PER_BATCH_MAX + 1)]
    assert len(plan.batches(blocks[:3], batch_bytes_max=1)) == 3
    assert [len(batch) for batch in plan.batches(blocks, batch_bytes_max=2**60)] == [
        BLOCKS_PER_BATCH_MAX,
        1,
    ]
    assert plan.batches([], batch_bytes_max=1) == []


@pytest.mark.parametrize("piece_blocks", [1, 3, 7, 100])
def test_pieces_cover_every_block_once(piece_blocks: int) -> None:
    pieces = pieces_of(7, block_bytes=CELL_BYTES, piece_bytes_max=piece_blocks * CELL_BYTES + 1)
    assert list(chain(*pieces)) == list(range(7))
    assert {len(piece) for piece in pieces[:-1]} <= {piece_blocks}


def test_a_block_larger_than_a_piece_is_a_piece() -> None:
    assert pieces_of(2, block_bytes=100, piece_bytes_max=10) == (range(0, 1), range(1, 2))

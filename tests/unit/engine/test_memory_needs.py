"""Memory is reckoned once: what the planner places is what workers accept."""

from dataclasses import replace

import pytest

from libs.contracts.reports import MemoryRule
from libs.engine.parallel.memory_needs import ReplicaMemory
from libs.kernel.units import MIB
from libs.policy.shapes import ReplicaShape
from tests.unit.engine.test_positions import A_MODEL

WHOLE = ReplicaShape(stages=1, shards=1)
SHAPES = [ReplicaShape(stages=p, shards=m) for p in range(1, 6) for m in (1, 2, 4)]
PLAIN = MemoryRule(element_bytes=4)


def a_memory(rule: MemoryRule = PLAIN, *, context_tokens_max: int = 64) -> ReplicaMemory:
    return ReplicaMemory(
        config=A_MODEL, rule=rule, block_tokens=16, context_tokens_max=context_tokens_max
    )


def of(memory: ReplicaMemory, shape: ReplicaShape) -> int:
    needed = memory.bytes_needed(shape, tokens=0)
    assert needed is not None
    return needed


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "rule",
    [PLAIN, MemoryRule(element_bytes=4, packed_copies=1, row_copy_bytes_max=MIB)],
    ids=["plain", "copied"],
)
def test_what_is_said_to_be_needed_is_exactly_enough(shape: ReplicaShape, rule: MemoryRule) -> None:
    memory = a_memory(rule)
    needed = of(memory, shape)
    blocks_min = 64 // 16
    assert memory.blocks_that_fit(shape, memory_bytes=needed) >= blocks_min
    assert memory.blocks_that_fit(shape, memory_bytes=needed - 1) < blocks_min


def test_two_positions_are_held_at_a_time() -> None:
    memory = a_memory()
    (stage,) = memory.stages(WHOLE)
    assert of(memory, WHOLE) == stage.weights_bytes + 2 * 4 * stage.kv_block_bytes
    # 2 for keys and values, 5 layers, 16 tokens, 4 heads of 2 elements of 4 bytes.
    assert stage.kv_block_bytes == 2 * 5 * 16 * 4 * 2 * 4


def test_copies_of_linears_count_and_embeddings_and_norms_are_not_copied() -> None:
    plain, packed = (
        a_memory(rule).stages(WHOLE)[0].weights_bytes
        for rule in (PLAIN, MemoryRule(element_bytes=4, packed_copies=1))
    )
    embedding_bytes = 101 * 24 * 4
    assert plain + 0.9 * (plain - embedding_bytes) < packed < 2 * plain - embedding_bytes


def test_a_second_copy_stops_at_its_bound() -> None:
    bounds = (0, 1000, 10 * MIB)
    none, some, all_ = (
        a_memory(MemoryRule(element_bytes=4, packed_copies=1, row_copy_bytes_max=bound))
        .stages(WHOLE)[0]
        .weights_bytes
        for bound in bounds
    )
    assert some - none == 1000
    plain = a_memory().stages(WHOLE)[0].weights_bytes
    assert all_ - none == none - plain


def test_a_tied_head_is_held_once_and_copied_all_the_same() -> None:
    tied = replace(A_MODEL, is_embedding_tied=True)
    untied = replace(A_MODEL, is_embedding_tied=False)
    embedding_bytes = 101 * 24 * 4
    for rule, copies in ((PLAIN, 1), (MemoryRule(element_bytes=4, packed_copies=1), 1)):
        both, one = (
            ReplicaMemory(config=config, rule=rule, block_tokens=16, context_tokens_max=64)
            .stages(WHOLE)[0]
            .weights_bytes
            for config in (untied, tied)
        )
        assert both - one == copies * embedding_bytes


def test_a_smaller_part_has_room_for_more_blocks() -> None:
    memory = a_memory()
    fits = [memory.blocks_that_fit(shape, memory_bytes=MIB) for shape in SHAPES[::3]]
    assert fits == sorted(fits)
    assert fits[0] < fits[-1]
    assert memory.blocks_that_fit(WHOLE, memory_bytes=MIB, kv_bytes_max=0) == 0


def test_a_model_that_cannot_be_cut_so_needs_nothing_that_could_be_said() -> None:
    for shape in (ReplicaShape(stages=6, shards=1), ReplicaShape(stages=1, shards=5)):
        assert a_memory().bytes_needed(shape, tokens=0) is None

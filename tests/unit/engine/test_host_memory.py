"""Copies of blocks between an attention's KV and host memory."""

import pytest
import torch

from libs.engine.attention import KvShape, PagedAttention
from libs.engine.host_memory import COPY_BLOCKS_MAX, HostMemory

BLOCKS = 2 * COPY_BLOCKS_MAX + 5


def an_attention(dtype: torch.dtype) -> PagedAttention:
    shape = KvShape(layers=2, blocks=BLOCKS, block_tokens=2, kv_heads=2, head_size=4)
    attention = PagedAttention(
        shape,
        heads=2,
        windows=set(),
        context_tokens_max=8,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    elements = torch.randn(
        BLOCKS, *attention.block_shape, generator=torch.Generator().manual_seed(3)
    )
    attention.scatter_blocks(range(BLOCKS), elements.to(dtype))
    return attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_stored_comes_back_bit_by_bit_to_any_block(dtype: torch.dtype) -> None:
    attention = an_attention(dtype)
    memory = HostMemory(attention, slots=BLOCKS)
    before = attention.gather_blocks(range(BLOCKS))
    memory.store([(block, BLOCKS - 1 - block) for block in range(BLOCKS)])
    attention.scatter_blocks(range(BLOCKS), torch.zeros_like(before))
    shifted = [(block + 7) % BLOCKS for block in range(BLOCKS)]
    assert memory.load([(BLOCKS - 1 - block, shifted[block]) for block in range(BLOCKS)]) == ()
    assert torch.equal(attention.gather_blocks(shifted), before)


def test_a_slot_that_changed_is_named_and_its_block_left_alone() -> None:
    attention = an_attention(torch.float32)
    memory = HostMemory(attention, slots=4)
    memory.store([(0, 0), (1, 1), (2, 2)])
    memory._slots_SLE[1, 0, 3] += 1.0
    before = attention.gather_blocks([10, 11, 12])
    assert memory.load([(0, 10), (1, 11), (2, 12)]) == (1,)
    after = attention.gather_blocks([10, 11, 12])
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[0], attention.gather_blocks([0])[0])
    assert torch.equal(after[2], attention.gather_blocks([2])[0])


def test_a_slot_that_was_never_stored_is_not_loaded() -> None:
    memory = HostMemory(an_attention(torch.float32), slots=4)
    assert memory.load([(3, 0)]) == (3,)

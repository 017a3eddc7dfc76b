"""Copies KV blocks out of one engine's memory and into another's, whatever their shapes.

What is exchanged is a rectangle, some layers and some KV heads, of a list of blocks. Its bytes
are [layers, blocks, tokens of a block, key and value, heads, head size], without gaps; so every
pair of positions that hold the rectangle understands them, and a layer's share is one piece.

Legend: L layers, B blocks, T tokens of a block, K KV heads, D head size.
"""

from collections.abc import Sequence

import torch

from libs.engine.tensor_bytes import bytes_of
from libs.kernel.core import require


def kv_piece_bytes(
    *,
    layers: int,
    heads: int,
    blocks: int,
    block_tokens: int,
    head_size: int,
    element_bytes: int,
) -> int:
    """Return the size of a rectangle of so many layers and KV heads of so many blocks."""
    return 2 * layers * blocks * block_tokens * heads * head_size * element_bytes


def export_blocks(kv_LBT2KD: torch.Tensor, block_ids: Sequence[int], out: memoryview) -> None:
    """Write these blocks of the rectangle into `out`, layer by layer."""
    ids = torch.tensor(block_ids, dtype=torch.int64, device=kv_LBT2KD.device)
    for layer_BT2KD, piece in _pieces(kv_LBT2KD, len(block_ids), out):
        piece[:] = bytes_of(layer_BT2KD.index_select(0, ids).contiguous().cpu())


def import_blocks(kv_LBT2KD: torch.Tensor, block_ids: Sequence[int], data: memoryview) -> None:
    """Overwrite these blocks of the rectangle with what `export_blocks` wrote."""
    ids = torch.tensor(block_ids, dtype=torch.int64, device=kv_LBT2KD.device)
    staging = torch.empty((len(block_ids), *kv_LBT2KD.shape[2:]), dtype=kv_LBT2KD.dtype)
    for layer_BT2KD, piece in _pieces(kv_LBT2KD, len(block_ids), data):
        bytes_of(staging)[:] = piece
        layer_BT2KD.index_copy_(0, ids, staging.to(kv_LBT2KD.device))


def _pieces(
    kv_LBT2KD: torch.Tensor, blocks: int, memory: memoryview
) -> list[tuple[torch.Tensor, memoryview]]:
    """Pair each layer with its part of the bytes."""
    memory = memory.cast("B")
    layers, _, tokens, _, heads, head_size = kv_LBT2KD.shape
    layer_bytes = kv_piece_bytes(
        layers=1,
        heads=heads,
        blocks=blocks,
        block_tokens=tokens,
        head_size=head_size,
        element_bytes=kv_LBT2KD.element_size(),
    )
    expected = layers * layer_bytes
    require(memory.nbytes == expected, f"{memory.nbytes} bytes for a piece of {expected}")
    return [
        (kv_LBT2KD[layer], memory[layer * layer_bytes : (layer + 1) * layer_bytes])
        for layer in range(layers)
    ]

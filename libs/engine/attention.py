"""Paged attention: keys and values live in blocks, queries read them through block tables.

Plain torch operations, so that one implementation serves every device. It is tuned for a CPU;
on CUDA it keeps the same contract but is experimental: slow (no flash kernel that reads block
tables), and not measured.

How decodes are batched, measured on CPU: gathering whole block rows into scratch and one call
for the batch is best for small batches; beyond GATHER_TOKENS_MAX padded tokens one call per
sequence is, since its scratch stays in the cache. Scratch persists because temporaries above
32 MiB fault in fresh pages at every call (42 ms against 13 ms).

Legend: L layers, B blocks, T tokens of a block, K KV heads, D head size, G query heads of one
KV head, N rows (tokens of the step), S sequences, P positions of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as functional

from libs.engine.model_config import ModelConfig
from libs.engine.steps import PlanEntry

GATHER_TOKENS_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """How much one engine's KV holds."""

    layers: int
    blocks: int
    block_tokens: int
    kv_heads: int
    head_size: int

    def bytes_total(self, dtype: torch.dtype) -> int:
        """Return the size of keys and values of all blocks."""
        block_elements = self.block_tokens * self.kv_heads * self.head_size
        return 2 * self.layers * self.blocks * block_elements * dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Prefill:
    first_row: int
    rows: int
    block_ids: torch.Tensor | None
    """None: the sequence starts here, its keys are the rows themselves."""
    mask_NP: torch.Tensor | None
    """None: causal."""


@dataclass(frozen=True, slots=True)
class _DecodeBatch:
    sequences: int
    blocks_each: int
    positions_max: int
    block_ids: torch.Tensor
    mask_S11P: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _DecodeOne:
    row: int
    positions: int
    block_ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """What every layer of one step shares: where rows are written and what they read."""

    slots_N: torch.Tensor
    """Index of each row's token among all blocks * block_tokens."""
    decodes: _DecodeBatch | tuple[_DecodeOne, ...]
    decode_rows: int
    """Decodes are the first rows, prefills follow."""
    prefills: tuple[_Prefill, ...]


class PagedAttention:
    """Owns the KV of all layers and attends to it."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        shape: KvShape,
        context_tokens_max: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape = shape
        self._group = config.heads // config.kv_heads
        self._device = device
        row_elements = shape.kv_heads * shape.head_size
        # Zeroed because masked positions are multiplied by 0, and 0 * NaN is NaN. Layout:
        # kv_L2BTKD, so that a block of one layer is one row, and a transfer unit later.
        self._kv = torch.zeros(
            (shape.layers, 2, shape.blocks, shape.block_tokens * row_elements),
            dtype=dtype,
            device=device,
        )
        scratch_tokens = max(GATHER_TOKENS_MAX, context_tokens_max + shape.block_tokens)
        self._scratch = torch.empty((2, scratch_tokens * row_elements), dtype=dtype, device=device)

    def prepare(self, entries: Sequence[PlanEntry]) -> AttentionStep:
        """Lay out one step; entries with one token must come first."""
        size = self.shape.block_tokens
        slots = [
            entry.block_table[position // size] * size + position % size
            for entry in entries
            for position in range(entry.start_position, entry.start_position + len(entry.token_ids))
        ]
        decode_rows = 0
        while decode_rows < len(entries) and len(entries[decode_rows].token_ids) == 1:
            decode_rows += 1
        prefills = []
        first_row = decode_rows
        for entry in entries[decode_rows:]:
            prefills.append(self._prepare_prefill(entry, first_row=first_row))
            first_row += len(entry.token_ids)
        return AttentionStep(
            slots_N=self._integers(slots),
            decodes=self._prepare_decodes(entries[:decode_rows]),
            decode_rows=decode_rows,
            prefills=tuple(prefills),
        )

    def attend(
        self,
        step: AttentionStep,
        *,
        layer: int,
        query_NHD: torch.Tensor,
        key_NKD: torch.Tensor,
        value_NKD: torch.Tensor,
    ) -> torch.Tensor:
        """Write the rows' keys and values, then attend; returns [N, H * D]."""
        rows, _, head_size = query_NHD.shape
        self._write(step, layer=layer, half=0, source_NKD=key_NKD)
        self._write(step, layer=layer, half=1, source_NKD=value_NKD)
        outputs: list[torch.Tensor] = []
        query_NKGD = query_NHD.view(rows, self.shape.kv_heads, self._group, head_size)
        match step.decodes:
            case _DecodeBatch() as batch:
                outputs.append(self._attend_batch(batch, layer=layer, query_NKGD=query_NKGD))
            case ones:
                outputs += [self._attend_one(one, layer, query_NKGD) for one in ones]
        for prefill in step.prefills:
            outputs.append(
                self._attend_prefill(
                    prefill,
                    layer=layer,
                    query_NHD=query_NHD,
                    key_NKD=key_NKD,
                    value_NKD=value_NKD,
                )
            )
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _prepare_decodes(
        self, entries: Sequence[PlanEntry]
    ) -> _DecodeBatch | tuple[_DecodeOne, ...]:
        if not entries:
            return ()
        positions = [entry.start_position + 1 for entry in entries]
        blocks_each = max(len(entry.block_table) for entry in entries)
        tokens_padded = len(entries) * blocks_each * self.shape.block_tokens
        if len(entries) > 1 and tokens_padded > GATHER_TOKENS_MAX:
            return tuple(
                _DecodeOne(row, entry.start_position + 1, self._integers(entry.block_table))
                for row, entry in enumerate(entries)
            )
        # A short table is padded with a block of its own: any block will do behind the mask.
        padded = [
            block
            for entry in entries
            for block in (
                *entry.block_table,
                *entry.block_table[:1] * (blocks_each - len(entry.block_table)),
            )
        ]
        mask = None
        if min(positions) < max(positions):
            lengths = self._integers(positions)[:, None]
            is_visible = torch.arange(max(positions), device=self._device) < lengths
            mask = torch.zeros(is_visible.shape, dtype=self._kv.dtype, device=self._device)
            mask = mask.masked_fill_(~is_visible, float("-inf"))[:, None, None, :]
        return _DecodeBatch(len(entries), blocks_each, max(positions), self._integers(padded), mask)

    def _prepare_prefill(self, entry: PlanEntry, *, first_row: int) -> _Prefill:
        rows = len(entry.token_ids)
        if entry.start_position == 0:
            return _Prefill(first_row, rows, None, None)
        positions = torch.arange(entry.start_position + rows, device=self._device)
        mask_NP = positions <= positions[entry.start_position :, None]
        return _Prefill(first_row, rows, self._integers(entry.block_table), mask_NP)

    def _write(
        self, step: AttentionStep, *, layer: int, half: int, source_NKD: torch.Tensor
    ) -> None:
        rows = source_NKD.shape[0]
        target = self._kv[layer, half].view(self.shape.blocks * self.shape.block_tokens, -1)
        target.index_copy_(0, step.slots_N, source_NKD.reshape(rows, -1))

    def _gather(
        self, block_ids: torch.Tensor, *, layer: int, half: int, sequences: int
    ) -> torch.Tensor:
        """Copy whole blocks into scratch; returns a view [S, K, P padded to blocks, D]."""
        source = self._kv[layer, half]
        gathered = self._scratch[half][: block_ids.shape[0] * source.shape[1]]
        torch.index_select(
            source, 0, block_ids, out=gathered.view(block_ids.shape[0], source.shape[1])
        )
        shape = self.shape
        return gathered.view(sequences, -1, shape.kv_heads, shape.head_size).transpose(1, 2)

    def _attend_batch(
        self, batch: _DecodeBatch, *, layer: int, query_NKGD: torch.Tensor
    ) -> torch.Tensor:
        key, value = (
            self._gather(batch.block_ids, layer=layer, half=half, sequences=batch.sequences)[
                :, :, : batch.positions_max
            ]
            for half in (0, 1)
        )
        # The query heads of one KV head stand in for the query length: 5x faster in bf16 than
        # expanding the KV heads.
        attended = functional.scaled_dot_product_attention(
            query_NKGD[: batch.sequences], key, value, attn_mask=batch.mask_S11P
        )
        return attended.reshape(batch.sequences, -1)

    def _attend_one(self, one: _DecodeOne, layer: int, query_NKGD: torch.Tensor) -> torch.Tensor:
        key, value = (
            self._gather(one.block_ids, layer=layer, half=half, sequences=1)[:, :, : one.positions]
            for half in (0, 1)
        )
        attended = functional.scaled_dot_product_attention(
            query_NKGD[one.row : one.row + 1], key, value
        )
        return attended.reshape(1, -1)

    def _attend_prefill(
        self,
        prefill: _Prefill,
        *,
        layer: int,
        query_NHD: torch.Tensor,
        key_NKD: torch.Tensor,
        value_NKD: torch.Tensor,
    ) -> torch.Tensor:
        rows = slice(prefill.first_row, prefill.first_row + prefill.rows)
        query = query_NHD[rows].transpose(0, 1).unsqueeze(0)
        if prefill.block_ids is None:
            key = key_NKD[rows].transpose(0, 1).unsqueeze(0)
            value = value_NKD[rows].transpose(0, 1).unsqueeze(0)
        else:
            assert prefill.mask_NP is not None
            positions = prefill.mask_NP.shape[1]
            key, value = (
                self._gather(prefill.block_ids, layer=layer, half=half, sequences=1)[
                    :, :, :positions
                ]
                for half in (0, 1)
            )
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=prefill.mask_NP,
            is_causal=prefill.mask_NP is None,
            enable_gqa=self._group > 1,
        )
        return attended.transpose(1, 2).reshape(prefill.rows, -1)

    def _integers(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

"""Paged attention: keys and values live in blocks, queries read them through block tables.

Plain torch operations, so that one implementation serves every device. It is tuned for a CPU;
on CUDA it keeps the same contract but is experimental: slow (no flash kernel that reads block
tables), and not measured.

Decodes are either gathered together (whole block rows copied into scratch, one attention call
for the batch, padded) or one by one (each into the same scratch, which then stays in the cache).
Measured for 12 layers of 12 query and 4 KV heads of 64, ms per step on one core, together | one
by one:

    sequences x positions     fp32            bf16
    4 x 64                    0.9 | 1.2       0.8 | 1.1
    8 x 128                   5.4 | 4.5       2.8 | 3.2
    8 x 192                   7.3 | 5.0       4.9 | 4.2
    32 x 128                 20.9 | 20.5     13.7 | 15.1
    32 x 512                 90.8 | 74.7     64.8 | 50.0

So what decides is the size of one sequence's keys and values. Scratch persists because
temporaries above 32 MiB fault in fresh pages at every call (42 ms against 13 ms).

Legend: L layers, B blocks, T tokens of a block, E elements, H query heads, K KV heads, G query
heads of one KV head, D head size, N rows (tokens of the step), S sequences, P positions of a
sequence.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as functional

from libs.engine.kv_blocks import export_blocks, import_blocks
from libs.engine.steps import PlanEntry
from libs.engine.zeroed_memory import lazy_zeros
from libs.kernel.core import require
from libs.kernel.units import KIB

GATHER_TOKENS_MAX: Final = 4096
"""Padded tokens gathered together at most; bounds the scratch."""
GATHER_SEQUENCE_BYTES_MAX: Final = 192 * KIB
"""Keys and values of one sequence in one layer, above which decodes go one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """Which part of a model's KV one engine holds, and how much of it."""

    layers: int
    blocks: int
    block_tokens: int
    kv_heads: int
    head_size: int
    layer_start: int = 0
    """The first of its layers, among those of the model."""
    kv_head_start: int = 0

    def bytes_total(self, dtype: torch.dtype) -> int:
        """Return the size of keys and values of all blocks."""
        block_elements = self.block_tokens * self.kv_heads * self.head_size
        return 2 * self.layers * self.blocks * block_elements * dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRule:
    """How one layer attends; the default is plain causal attention."""

    scale: float | None = None
    """Multiplies the scores; None: 1 / sqrt(head size)."""
    window_tokens: int | None = None
    """Tokens that each token sees, itself included; None: all before it."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap)."""


PLAIN_RULE: Final = AttentionRule()
Masks = dict[int | None, torch.Tensor | None]
"""By window; None instead of a mask where it would hide nothing more than the call does."""


@dataclass(frozen=True, slots=True)
class _Gather:
    """Blocks to be copied into scratch, and how the scratch then reads; the same at all layers."""

    block_ids: torch.Tensor
    target: torch.Tensor
    """Scratch, one row per block."""
    key_SKPD: torch.Tensor
    value_SKPD: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Prefill:
    rows: slice
    gather: _Gather | None
    """None: the sequence starts here, its keys are the rows themselves."""
    masks_NP: Masks
    """None: causal."""


@dataclass(frozen=True, slots=True)
class _DecodeBatch:
    gather: _Gather
    masks_S11P: Masks
    """None: all sequences are equally long, and within the window."""


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """What every layer of one step shares: where rows are written and what they read."""

    slots_N: torch.Tensor
    """Index of each row's token among all blocks * block_tokens."""
    decode_rows: int
    """Decodes are the first rows, prefills follow."""
    decode_batch: _DecodeBatch | None
    """All decodes as one call, or None if there are none or each has its own."""
    decodes: tuple[_DecodeBatch, ...]
    """The decodes with a call of their own each, in the order of the rows."""
    prefills: tuple[_Prefill, ...]


class PagedAttention:
    """Owns the KV of all layers and attends to it."""

    def __init__(
        self,
        shape: KvShape,
        *,
        heads: int,
        windows: Set[int],
        context_tokens_max: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate; `windows` are all that the rules of any layer will name."""
        self.shape = shape
        self._group = heads // shape.kv_heads
        self._windows = sorted(windows)
        self.dtype = dtype
        self.device = device
        self._heads = heads
        self._token_elements = 2 * shape.kv_heads * shape.head_size
        self._block_elements = shape.block_tokens * self._token_elements
        # Layout kv_LBT2KD: keys and values of a token lie together, so that one row is written
        # per token and one is gathered per block. Zeroed because masked positions are multiplied
        # by 0, and 0 * NaN is NaN.
        self._kv_LBE = lazy_zeros(
            (shape.layers, shape.blocks, self._block_elements), dtype=dtype, device=device
        )
        scratch_tokens = max(GATHER_TOKENS_MAX, context_tokens_max + shape.block_tokens)
        self._scratch = torch.empty(
            scratch_tokens * self._token_elements, dtype=dtype, device=device
        )

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
        batch, ones = self._prepare_decodes(entries[:decode_rows])
        return AttentionStep(
            slots_N=self._integers(slots),
            decode_rows=decode_rows,
            decode_batch=batch,
            decodes=ones,
            prefills=tuple(prefills),
        )

    def attend(
        self,
        step: AttentionStep,
        *,
        layer: int,
        query_NHD: torch.Tensor,
        kv_N2KD: torch.Tensor,
        rule: AttentionRule = PLAIN_RULE,
    ) -> torch.Tensor:
        """Write the rows' keys and values, then attend; returns [N, H * D].

        `layer` is the model's number of it.
        kv_N2KD holds a row's keys, then its values; both inputs may be slices of one tensor.
        """
        rows, _, head_size = query_NHD.shape
        kv_BE = self._kv_LBE[layer - self.shape.layer_start]
        kv_BE.view(-1, self._token_elements).index_copy_(
            0, step.slots_N, kv_N2KD.reshape(rows, self._token_elements)
        )
        # The query heads of one KV head stand in for the query length of a decode: 5x faster in
        # bf16 than expanding the KV heads.
        query_NKGD = query_NHD.view(rows, self.shape.kv_heads, self._group, head_size)
        outputs: list[torch.Tensor] = []
        if step.decode_batch is not None:
            queries_SKGD = query_NKGD[: step.decode_rows]
            outputs.append(_attend_batch(step.decode_batch, kv_BE, queries_SKGD, rule))
        elif step.decodes:
            queries = query_NKGD[: step.decode_rows].unsqueeze(1).unbind(0)
            outputs += [
                _attend_batch(decode, kv_BE, query, rule)
                for decode, query in zip(step.decodes, queries, strict=True)
            ]
        for prefill in step.prefills:
            outputs.append(
                self._attend_prefill(
                    prefill,
                    kv_BE,
                    query_NHD=query_NHD[prefill.rows],
                    kv_N2KD=kv_N2KD[prefill.rows],
                    rule=rule,
                )
            )
        attended = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return attended.reshape(rows, self._heads * head_size)

    def export_blocks(
        self, *, layers: range, heads: range, block_ids: Sequence[int], out: memoryview
    ) -> None:
        """Copy a rectangle of KV out, as `kv_blocks` lays it; numbers are those of the model."""
        export_blocks(self._rectangle(layers, heads), block_ids, out)

    def import_blocks(
        self, *, layers: range, heads: range, block_ids: Sequence[int], data: memoryview
    ) -> None:
        """Copy in what `export_blocks` of any shape of replica copied out."""
        import_blocks(self._rectangle(layers, heads), block_ids, data)

    @property
    def block_shape(self) -> tuple[int, int]:
        """Layers, and elements of one block of one layer: a row of `gather_blocks`."""
        return self.shape.layers, self._block_elements

    def gather_blocks(self, block_ids: Sequence[int]) -> torch.Tensor:
        """Return a copy rows_BLE of whole blocks, on the device."""
        return self._kv_LBE.index_select(1, self._integers(block_ids)).transpose(0, 1).contiguous()

    def scatter_blocks(self, block_ids: Sequence[int], rows_BLE: torch.Tensor) -> None:
        """Overwrite whole blocks with what `gather_blocks` returned."""
        rows_LBE = rows_BLE.transpose(0, 1).to(self.device)
        self._kv_LBE.index_copy_(1, self._integers(block_ids), rows_LBE)

    def _rectangle(self, layers: range, heads: range) -> torch.Tensor:
        """Return a view kv_LBT2KD of these layers and KV heads."""
        shape = self.shape
        layer, head = layers.start - shape.layer_start, heads.start - shape.kv_head_start
        require(layer >= 0 and layer + len(layers) <= shape.layers, f"{layers} are not held here")
        require(head >= 0 and head + len(heads) <= shape.kv_heads, f"heads {heads} are not here")
        kv_LBT2KD = self._kv_LBE.view(
            shape.layers, shape.blocks, shape.block_tokens, 2, shape.kv_heads, shape.head_size
        )
        return kv_LBT2KD[layer : layer + len(layers), ..., head : head + len(heads), :]

    def _prepare_decodes(
        self, entries: Sequence[PlanEntry]
    ) -> tuple[_DecodeBatch | None, tuple[_DecodeBatch, ...]]:
        if not entries:
            return None, ()
        positions = [entry.start_position + 1 for entry in entries]
        blocks_each = max(len(entry.block_table) for entry in entries)
        if len(entries) > 1 and not self._is_gathered_together(len(entries), blocks_each):
            return None, tuple(
                _DecodeBatch(
                    self._prepare_gather(entry.block_table, sequences=1, positions=length),
                    self._decode_masks([length]),
                )
                for entry, length in zip(entries, positions, strict=True)
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
        gather = self._prepare_gather(padded, sequences=len(entries), positions=max(positions))
        return _DecodeBatch(gather, self._decode_masks(positions)), ()

    def _is_gathered_together(self, sequences: int, blocks_each: int) -> bool:
        sequence_bytes = blocks_each * self._block_elements * self._kv_LBE.element_size()
        tokens_padded = sequences * blocks_each * self.shape.block_tokens
        return sequence_bytes <= GATHER_SEQUENCE_BYTES_MAX and tokens_padded <= GATHER_TOKENS_MAX

    def _decode_masks(self, positions: list[int]) -> Masks:
        masks: Masks = {None: self._decode_mask(positions, window=None)}
        for window in self._windows:
            is_narrower = window < max(positions)
            masks[window] = (
                self._decode_mask(positions, window=window) if is_narrower else masks[None]
            )
        return masks

    def _decode_mask(self, positions: list[int], *, window: int | None) -> torch.Tensor | None:
        if window is None and min(positions) == max(positions):
            return None
        columns = torch.arange(max(positions), device=self.device)
        ends_S1 = self._integers(positions)[:, None]
        is_hidden = columns >= ends_S1
        if window is not None:
            is_hidden |= columns < ends_S1 - window
        mask = torch.zeros(is_hidden.shape, dtype=self._kv_LBE.dtype, device=self.device)
        return mask.masked_fill_(is_hidden, float("-inf"))[:, None, None, :]

    def _prepare_prefill(self, entry: PlanEntry, *, first_row: int) -> _Prefill:
        tokens = len(entry.token_ids)
        rows = slice(first_row, first_row + tokens)
        end = entry.start_position + tokens
        masks: Masks = {None: None}
        gather = None
        if entry.start_position > 0:
            masks[None] = self._prefill_mask(entry.start_position, end, window=None)
            gather = self._prepare_gather(entry.block_table, sequences=1, positions=end)
        for window in self._windows:
            masks[window] = masks[None]
            if window < end:
                masks[window] = self._prefill_mask(entry.start_position, end, window=window)
        return _Prefill(rows, gather, masks)

    def _prefill_mask(self, start: int, end: int, *, window: int | None) -> torch.Tensor:
        columns = torch.arange(end, device=self.device)
        rows_N1 = columns[start:, None]
        mask_NP = columns <= rows_N1
        if window is not None:
            mask_NP &= columns > rows_N1 - window
        return mask_NP

    def _prepare_gather(
        self, block_ids: Sequence[int], *, sequences: int, positions: int
    ) -> _Gather:
        """Lay `sequences` tables of equal length one behind another into scratch."""
        shape = self.shape
        target = self._scratch[: len(block_ids) * self._block_elements]
        tokens = target.view(sequences, -1, 2, shape.kv_heads, shape.head_size)
        return _Gather(
            block_ids=self._integers(block_ids),
            target=target.view(len(block_ids), self._block_elements),
            key_SKPD=tokens[:, :positions, 0].transpose(1, 2),
            value_SKPD=tokens[:, :positions, 1].transpose(1, 2),
        )

    def _attend_prefill(
        self,
        prefill: _Prefill,
        kv_BE: torch.Tensor,
        *,
        query_NHD: torch.Tensor,
        kv_N2KD: torch.Tensor,
        rule: AttentionRule,
    ) -> torch.Tensor:
        rows, _, head_size = query_NHD.shape
        if prefill.gather is None:
            keys = self.shape.kv_heads
            key = kv_N2KD[:, :keys].transpose(0, 1).unsqueeze(0)
            value = kv_N2KD[:, keys:].transpose(0, 1).unsqueeze(0)
        else:
            key, value = _gathered(prefill.gather, kv_BE)
        query = query_NHD.transpose(0, 1).unsqueeze(0)
        mask_NP = prefill.masks_NP[rule.window_tokens]
        if rule.softcap is not None:
            if mask_NP is None:
                mask_NP = self._prefill_mask(0, rows, window=None)
            key, value = (t.repeat_interleave(self._group, dim=1) for t in (key, value))
            attended = _attend_capped(query, key, value, mask=mask_NP, rule=rule)
        else:
            attended = functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask_NP,
                is_causal=mask_NP is None,
                enable_gqa=self._group > 1,
                scale=rule.scale,
            )
        return attended.transpose(1, 2).reshape(rows, self.shape.kv_heads, self._group, head_size)

    def _integers(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _gathered(gather: _Gather, kv_BE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy whole blocks of one layer into scratch, valid until the next call."""
    torch.index_select(kv_BE, 0, gather.block_ids, out=gather.target)
    return gather.key_SKPD, gather.value_SKPD


def _attend_batch(
    batch: _DecodeBatch, kv_BE: torch.Tensor, query_SKGD: torch.Tensor, rule: AttentionRule
) -> torch.Tensor:
    key, value = _gathered(batch.gather, kv_BE)
    mask = batch.masks_S11P[rule.window_tokens]
    if rule.softcap is not None:
        return _attend_capped(query_SKGD, key, value, mask=mask, rule=rule)
    return functional.scaled_dot_product_attention(
        query_SKGD, key, value, attn_mask=mask, scale=rule.scale
    )


def _attend_capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    rule: AttentionRule,
) -> torch.Tensor:
    """Attend with softcapped scores, which torch's own attention does not know.

    A mask of booleans keeps what is true, one of floats is added, as torch has it.
    """
    assert rule.softcap is not None
    scale = query.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    scores = torch.matmul(query, key.transpose(-1, -2)) * (scale / rule.softcap)
    scores = scores.tanh_().mul_(rule.softcap)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill_(~mask, float("-inf"))
    elif mask is not None:
        scores = scores.add_(mask)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value)

"""How much memory a worker needs for a position: one arithmetic for workers and planner; pure.

    weights   every slice once, for peers to fetch
            + every linear again, packed, where the engine computes on a CPU
            + linears a third time, for single rows, up to a bound, where that is faster
    KV        of the position that serves and of the one that is staged beside it

What the engine does is the worker's to know, so it says it in its report (MemoryRule); the planner
computes with the same rule over the same config, and places nothing that a worker would refuse. A
planner weighs hundreds of shapes, again and again: bytes are added up per kind of stage, and
remembered.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from libs.contracts.reports import MemoryRule
from libs.engine.model_config import ModelConfig
from libs.engine.parallel.position import Position, check_shape, layer_ranges
from libs.engine.parallel.slices import slice_of, slices_of
from libs.engine.tensor_rows import TensorRow, head_row, layer_rows
from libs.policy.shapes import ReplicaShape

POSITIONS_AT_A_TIME: Final = 2
"""A hand-over holds the position that serves and the one that is staged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageNeeds:
    """What the shards of one stage need, at most."""

    weights_bytes: int
    """Copies included."""
    kv_block_bytes: int
    """Keys and values of one block in the layers and heads of one shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMemory:
    """What the workers of a replica need, by its shape."""

    config: ModelConfig
    rule: MemoryRule
    block_tokens: int
    context_tokens_max: int
    """Of the longest session that is admitted, for which there must be blocks."""

    def bytes_needed(self, shape: ReplicaShape, *, tokens: int) -> int | None:
        """Return the least memory that serves so many tokens of KV at every position, at least
        the longest session; None if the model cannot be cut so."""
        if check_shape(self.config, stages=shape.stages, shards=shape.shards) is not None:
            return None
        blocks = -(-max(tokens, self.context_tokens_max) // self.block_tokens)
        return max(
            stage.weights_bytes + POSITIONS_AT_A_TIME * blocks * stage.kv_block_bytes
            for stage in self.stages(shape)
        )

    def blocks_that_fit(
        self, shape: ReplicaShape, *, memory_bytes: int, kv_bytes_max: int | None = None
    ) -> int:
        """Return the KV blocks for which every worker of a replica has room; 0 if not even the
        weights fit. `kv_bytes_max` bounds the KV of one position."""
        return min(
            _kv_bytes(memory_bytes - stage.weights_bytes, kv_bytes_max) // stage.kv_block_bytes
            for stage in self.stages(shape)
        )

    def stages(self, shape: ReplicaShape) -> tuple[StageNeeds, ...]:
        """Return the needs of a stage of each kind that the shape has."""
        return _stages(self, shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    plain_bytes: int
    linear_bytes: int
    """Of those that are copied; a tied head is copied without being there twice."""

    def held_bytes(self, rule: MemoryRule) -> int:
        return (
            self.plain_bytes
            + rule.packed_copies * self.linear_bytes
            + min(rule.row_copy_bytes_max, self.linear_bytes)
        )


def _kv_bytes(left_bytes: int, kv_bytes_max: int | None) -> int:
    kv_bytes = max(0, left_bytes) // POSITIONS_AT_A_TIME
    return kv_bytes if kv_bytes_max is None else min(kv_bytes, kv_bytes_max)


@lru_cache(maxsize=4096)
def _stages(memory: ReplicaMemory, shape: ReplicaShape) -> tuple[StageNeeds, ...]:
    config, rule, last = memory.config, memory.rule, shape.stages - 1
    ranges = layer_ranges(config.layers, stages=shape.stages)
    kinds = {(len(ranges[stage]), stage == 0, stage == last) for stage in range(shape.stages)}
    kv_heads = len(_shard(shape.shards, 0).kv_head_range(config))
    kv_block_bytes = 2 * memory.block_tokens * kv_heads * config.head_size * rule.element_bytes
    found = []
    for layers, is_first, is_last in sorted(kinds):
        layer_bytes = _layer_bytes(config, rule, shape.shards)
        end_bytes = _end_bytes(config, rule, shape.shards, is_first, is_last)
        weights = [
            _Weights(
                plain_bytes=layers * layer.plain_bytes + end.plain_bytes,
                linear_bytes=layers * layer.linear_bytes + end.linear_bytes,
            )
            for layer, end in zip(layer_bytes, end_bytes, strict=True)
        ]
        needs = StageNeeds(
            weights_bytes=max(each.held_bytes(rule) for each in weights),
            kv_block_bytes=layers * kv_block_bytes,
        )
        found.append(needs)
    return tuple(found)


@lru_cache(maxsize=256)
def _layer_bytes(config: ModelConfig, rule: MemoryRule, shards: int) -> tuple[_Weights, ...]:
    """Return the weights of one layer, by shard; all layers are alike."""
    rows = layer_rows(config, layer=0)
    linears = [
        row for linear in (rows.qkv, rows.output, rows.up, rows.down) for row in linear.weights
    ]
    return tuple(
        _Weights(
            plain_bytes=_bytes_of(rows, config, position, rule),
            linear_bytes=_bytes_of(linears, config, position, rule),
        )
        for position in (_shard(shards, shard) for shard in range(shards))
    )


@lru_cache(maxsize=256)
def _end_bytes(
    config: ModelConfig, rule: MemoryRule, shards: int, is_first: bool, is_last: bool
) -> tuple[_Weights, ...]:
    """Return the weights of a model's ends that a stage has, by shard."""
    stages = 1 if is_first and is_last else 3
    stage = 0 if is_first else stages - 1 if is_last else 1
    linears = [head_row(config)] if is_last else []
    weights = []
    for shard in range(shards):
        position = _shard(shards, shard, stages=stages, stage=stage)
        slices = slices_of(config, position, element_bytes=rule.element_bytes)[None]
        weights.append(
            _Weights(
                plain_bytes=sum(slice_.bytes for slice_ in slices),
                linear_bytes=_bytes_of(linears, config, position, rule),
            )
        )
    return tuple(weights)


def _shard(shards: int, shard: int, *, stages: int = 1, stage: int = 0) -> Position:
    """Return a position for its shard and its ends; its only layer is the first."""
    return Position(
        stages=stages, shards=shards, stage=stage, shard=shard, layer_start=0, layer_stop=1
    )


def _bytes_of(
    rows: Iterable[TensorRow], config: ModelConfig, position: Position, rule: MemoryRule
) -> int:
    slices = (slice_of(row, config, position, element_bytes=rule.element_bytes) for row in rows)
    return sum(slice_.bytes for slice_ in slices if slice_ is not None)

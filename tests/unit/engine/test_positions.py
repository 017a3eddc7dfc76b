"""Positions cut a model without gaps, and slices say exactly what each of them holds."""

from collections import Counter
from dataclasses import replace

import pytest

from libs.engine.families import FAMILIES
from libs.engine.model_config import ModelConfig
from libs.engine.parallel.position import (
    Position,
    check_shape,
    layer_ranges,
    position_at,
    positions_of,
)
from libs.engine.parallel.slices import all_slices_of, slices_of
from libs.engine.tensor_rows import tensor_rows
from libs.transfer.layout import TensorSlice, missing

A_MODEL = ModelConfig(
    family=FAMILIES["llama"],
    layers=5,
    hidden_size=24,
    heads=12,
    kv_heads=4,
    head_size=2,
    intermediate_size=48,
    vocabulary_size=101,
    context_tokens_max=64,
    norm_epsilon=1e-6,
    rope_theta=1e4,
    rope_scaling=None,
    rotary_size=2,
    window_tokens=None,
    activation="silu",
    has_qkv_bias=True,
    has_output_bias=True,
    has_mlp_bias=False,
    is_residual_parallel=False,
    is_embedding_tied=False,
    eos_token_ids=frozenset(),
)
NEOX = replace(A_MODEL, family=FAMILIES["gpt_neox"], kv_heads=12, has_mlp_bias=True)
OPT = replace(A_MODEL, family=FAMILIES["opt"], kv_heads=12, is_embedding_tied=True)
QWEN3 = replace(A_MODEL, family=FAMILIES["qwen3"], kv_heads=2)
SHAPES = [(1, 1), (2, 1), (1, 2), (3, 2), (5, 4), (1, 12)]


def a_position(**changes: int) -> Position:
    fields = {"stages": 2, "shards": 2, "stage": 0, "shard": 0, "layer_start": 0, "layer_stop": 3}
    return Position(**(fields | changes))


def test_layers_are_cut_into_stages_that_differ_by_at_most_one() -> None:
    for layers, stages in ((5, 1), (5, 2), (5, 5), (44, 3), (8, 4)):
        ranges = layer_ranges(layers, stages=stages)
        assert [layer for part in ranges for layer in part] == list(range(layers))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_ranks_count_stage_by_stage_and_the_lead_is_the_first_of_the_last_stage() -> None:
    positions = positions_of(A_MODEL, stages=3, shards=2)
    assert [position.rank for position in positions] == list(range(6))
    assert [position.rank for position in positions if position.is_lead] == [4]
    assert {position.lead_rank for position in positions} == {4}
    assert [position.rank for position in positions if position.is_first_stage] == [0, 1]
    assert [position.rank for position in positions if position.is_last_stage] == [4, 5]


def test_shards_beyond_the_kv_heads_hold_those_that_their_query_heads_read() -> None:
    group = A_MODEL.heads // A_MODEL.kv_heads
    for shards in (1, 2, 4, 12):
        for position in positions_of(A_MODEL, stages=1, shards=shards):
            read = sorted({head // group for head in position.head_range(A_MODEL)})
            assert read == list(position.kv_head_range(A_MODEL))


@pytest.mark.parametrize(
    ("stages", "shards", "words"),
    [
        (0, 1, "at least 1 of each"),
        (1, 0, "at least 1 of each"),
        (6, 1, "more than the 5 layers"),
        (1, 5, "do not divide the 12 attention heads"),
        (1, 24, "do not divide the 12 attention heads"),
        (1, 3, "neither divide the 4 KV heads"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_with_the_reason(
    stages: int, shards: int, words: str
) -> None:
    reason = check_shape(A_MODEL, stages=stages, shards=shards)
    assert reason is not None
    assert words in reason


def test_intermediate_units_must_divide_too() -> None:
    narrow = replace(A_MODEL, intermediate_size=46)
    assert check_shape(narrow, stages=1, shards=2) is None
    assert check_shape(narrow, stages=1, shards=4) is not None


@pytest.mark.parametrize("changes", [{"stage": 2}, {"shard": -1}, {"layer_stop": 0}])
def test_a_position_outside_its_shape_cannot_be_made(changes: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        a_position(**changes)


@pytest.mark.parametrize("config", [A_MODEL, NEOX, OPT, QWEN3])
@pytest.mark.parametrize(("stages", "shards"), SHAPES)
def test_the_positions_of_every_shape_hold_the_whole_model_together(
    config: ModelConfig, stages: int, shards: int
) -> None:
    assert check_shape(config, stages=stages, shards=shards) is None
    held = [
        slice_
        for position in positions_of(config, stages=stages, shards=shards)
        for slice_ in all_slices_of(config, position, element_bytes=4)
    ]
    whole = [
        TensorSlice(tensor=row.name, start=0, stop=row.units, bytes_per_unit=4 * row.unit_elements)
        for row in tensor_rows(config)
    ]
    assert missing(whole, held) == ()
    assert missing(held, whole) == ()


@pytest.mark.parametrize("config", [A_MODEL, NEOX])
def test_every_large_tensor_is_divided_by_the_shards(config: ModelConfig) -> None:
    sizes = [
        sum(
            slice_.bytes
            for slice_ in all_slices_of(config, position, element_bytes=2)
            if "norm" not in slice_.tensor and "bias" not in slice_.tensor
        )
        for position in positions_of(config, stages=1, shards=4)
    ]
    whole = position_at(config, stages=1, shards=1, stage=0, shard=0)
    total = sum(
        slice_.bytes
        for slice_ in all_slices_of(config, whole, element_bytes=2)
        if "norm" not in slice_.tensor and "bias" not in slice_.tensor
    )
    assert sum(sizes) == total
    # The vocabulary of 101 does not divide: two tensors, rows of 24 elements of 2 bytes.
    assert max(sizes) - min(sizes) <= 2 * 24 * 2


def test_a_bias_behind_a_cut_by_columns_is_held_by_one_shard_alone() -> None:
    holders = Counter(
        slice_.tensor
        for position in positions_of(A_MODEL, stages=1, shards=4)
        for slice_ in all_slices_of(A_MODEL, position, element_bytes=4)
        if slice_.tensor.endswith("o_proj.bias")
    )
    assert set(holders.values()) == {1}


def test_a_tied_head_is_a_slice_of_the_embedding_and_held_once() -> None:
    only = position_at(OPT, stages=1, shards=2, stage=0, shard=1)
    edge = slices_of(OPT, only, element_bytes=4)[None]
    embedding = OPT.family.names.embedding
    assert [slice_.tensor for slice_ in edge].count(embedding) == 1
    last = position_at(OPT, stages=2, shards=2, stage=1, shard=1)
    edge_of_last = slices_of(OPT, last, element_bytes=4)[None]
    assert [s for s in edge_of_last if s.tensor == embedding] == [
        s for s in edge if s.tensor == embedding
    ]


def test_slices_come_by_layer() -> None:
    second = position_at(A_MODEL, stages=2, shards=1, stage=1, shard=0)
    slices = slices_of(A_MODEL, second, element_bytes=4)
    assert set(slices) == {None, 2, 3, 4}
    for layer in (2, 3, 4):
        assert all(f"layers.{layer}." in slice_.tensor for slice_ in slices[layer])

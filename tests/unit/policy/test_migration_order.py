"""Algorithm 2 by hand, and against every order."""

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from libs.policy.device_mapping import HeldPosition
from libs.policy.migration_order import (
    LayerBytes,
    MoveKv,
    MoveLayer,
    ReplacedPosition,
    StartStage,
    layer_growth,
    migration_steps,
    order_layers,
)
from libs.policy.model_profile import ModelBytes
from libs.policy.shapes import ReplicaShape


def peak_of(growth: LayerBytes, order: tuple[int, ...]) -> float:
    return max(0.0, float(np.cumsum(growth[list(order)], axis=0).max(initial=0.0)))


def test_layers_go_in_order_where_memory_allows() -> None:
    ordered = order_layers(np.ones((4, 2)), bytes_max=10)
    assert ordered.layers == (0, 1, 2, 3)
    assert ordered.bytes_peak == 4
    assert ordered.is_within_bound


def test_a_layer_that_would_overflow_waits_for_one_that_makes_room() -> None:
    growth = np.array([[5.0], [-5.0], [5.0], [-5.0]])
    in_order = peak_of(growth, (0, 1, 2, 3))
    ordered = order_layers(growth, bytes_max=0)
    assert in_order == 5
    assert ordered.bytes_peak == 0
    assert ordered.layers == (1, 2, 3, 0)
    assert ordered.is_within_bound


def test_a_bound_that_nothing_keeps_is_told() -> None:
    ordered = order_layers(np.array([[5.0], [5.0]]), bytes_max=4)
    assert not ordered.is_within_bound
    assert ordered.bytes_peak == 10


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, (5, 3), elements=st.integers(-9, 9).map(float)), st.integers(0, 20))
def test_every_layer_moves_once_and_the_peak_is_true_and_in_reach(
    growth: LayerBytes, bytes_max: int
) -> None:
    ordered = order_layers(growth, bytes_max=bytes_max)
    assert sorted(ordered.layers) == list(range(5))
    assert ordered.bytes_peak == peak_of(growth, ordered.layers)
    least = min(peak_of(growth, order) for order in permutations(range(5)))
    assert least <= ordered.bytes_peak <= peak_of(np.maximum(growth, 0), (0, 1, 2, 3, 4))


def test_two_workers_that_swap_stages_never_hold_more_than_one_layer_beyond() -> None:
    size = ModelBytes(
        layers=8, heads=1, kv_heads=1, layer_bytes=100, embedding_bytes=0, head_bytes=0,
        kv_bytes_per_token_layer=1,
    )  # fmt: skip
    shape = ReplicaShape(stages=2, shards=1)
    first = HeldPosition(replica_id="x", shape=shape, stage=0, shard=0)
    last = HeldPosition(replica_id="x", shape=shape, stage=1, shard=0)
    growth = layer_growth(
        size,
        [ReplacedPosition(before=first, after=last), ReplacedPosition(before=last, after=first)],
    )
    naive = peak_of(growth, tuple(range(8)))
    ordered = order_layers(growth, bytes_max=100)
    assert naive == 400
    assert ordered.bytes_peak == 100


def test_kv_goes_first_and_a_stage_starts_with_its_last_layer() -> None:
    steps = migration_steps((2, 0, 1, 3), layers=4, stages=2)
    assert steps == (
        MoveKv(),
        MoveLayer(layer=2),
        MoveLayer(layer=0),
        MoveLayer(layer=1),
        StartStage(stage=0),
        MoveLayer(layer=3),
        StartStage(stage=1),
    )

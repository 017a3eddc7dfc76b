"""Mapping by hand: what a reader can recompute."""

import pytest

from libs.policy.device_mapping import (
    HeldPosition,
    Holder,
    MappingTask,
    map_flat,
    map_in_order,
    map_two_step,
)
from libs.policy.model_profile import ModelBytes
from libs.policy.shapes import ReplicaShape

SIZE = ModelBytes(
    layers=4,
    heads=4,
    kv_heads=4,
    layer_bytes=1_000,
    embedding_bytes=0,
    head_bytes=0,
    kv_bytes_per_token_layer=10,
)
ONE_STAGE = ReplicaShape(stages=1, shards=2)
TWO_STAGES = ReplicaShape(stages=2, shards=1)


def held(replica_id: str, shape: ReplicaShape, rank: int) -> HeldPosition:
    stage, shard = divmod(rank, shape.shards)
    return HeldPosition(replica_id=replica_id, shape=shape, stage=stage, shard=shard)


def task(
    *holders: Holder,
    shape: ReplicaShape,
    heirs: tuple[tuple[str, ...], ...] = ((),),
    kv_tokens: dict[str, int] | None = None,
) -> MappingTask:
    return MappingTask(
        size=SIZE, shape=shape, holders=holders, heirs=heirs, kv_tokens=kv_tokens or {}
    )


def test_a_worker_goes_where_most_of_its_weights_are_needed() -> None:
    # Two tensor shards become two stages: each worker holds half of what either stage needs,
    # but a third worker holds all of the second stage.
    mapping = map_flat(
        task(
            Holder(worker_id="a", node_id="n", held=held("x", ONE_STAGE, 0)),
            Holder(worker_id="b", node_id="n", held=held("x", ONE_STAGE, 1)),
            Holder(worker_id="c", node_id="n", held=held("y", TWO_STAGES, 1)),
            shape=TWO_STAGES,
        )
    )
    assert mapping.pipelines == (("a", "c"),)
    assert mapping.bytes_needed == 4_000
    assert mapping.bytes_kept == 1_000 + 2_000


def test_kv_counts_only_where_the_pipeline_inherits_its_replica() -> None:
    workers = [
        Holder(worker_id="a", node_id="n", held=held("x", ReplicaShape(stages=1, shards=1), 0)),
        Holder(worker_id="b", node_id="n", held=held("y", ReplicaShape(stages=1, shards=1), 0)),
    ]
    one = ReplicaShape(stages=1, shards=1)
    tokens = {"x": 5, "y": 7}
    crossed = map_flat(task(*workers, shape=one, heirs=(("y",), ("x",)), kv_tokens=tokens))
    assert crossed.pipelines == (("b",), ("a",))
    assert crossed.bytes_moved == 0
    without = map_flat(task(*workers, shape=one, heirs=((), ()), kv_tokens=tokens))
    assert without.bytes_needed == 8_000


def test_a_replica_shared_by_two_heirs_gives_each_half_of_its_kv() -> None:
    whole = ReplicaShape(stages=1, shards=1)
    mapping = map_flat(
        task(
            Holder(worker_id="a", node_id="n", held=held("x", whole, 0)),
            Holder(worker_id="b", node_id="n"),
            shape=whole,
            heirs=(("x",), ("x",)),
            kv_tokens={"x": 100},
        )
    )
    assert mapping.bytes_needed == 2 * 4_000 + 2 * 50 * 40
    assert mapping.bytes_moved == 4_000 + 50 * 40


def test_kv_heads_fewer_than_shards_are_held_twice() -> None:
    size = ModelBytes(
        layers=1, heads=4, kv_heads=2, layer_bytes=400, embedding_bytes=0, head_bytes=0,
        kv_bytes_per_token_layer=10,
    )  # fmt: skip
    four = ReplicaShape(stages=1, shards=4)
    mapping = map_flat(
        MappingTask(
            size=size,
            shape=four,
            holders=[
                Holder(worker_id=f"w{rank}", node_id="n", held=held("x", four, rank))
                for rank in range(4)
            ],
            heirs=(("x",),),
            kv_tokens={"x": 10},
        )
    )
    assert mapping.bytes_needed == 400 + 4 * 50
    assert mapping.bytes_moved == 0


def test_two_steps_never_split_a_stage_over_nodes_even_if_flat_would_move_less() -> None:
    # Node 1 holds shard 0 twice and node 2 shard 1 twice: flat pairs them across nodes.
    holders = [
        Holder(worker_id="a", node_id="n1", held=held("x", ONE_STAGE, 0)),
        Holder(worker_id="b", node_id="n1", held=held("y", ONE_STAGE, 0)),
        Holder(worker_id="c", node_id="n2", held=held("x", ONE_STAGE, 1)),
        Holder(worker_id="d", node_id="n2", held=held("y", ONE_STAGE, 1)),
    ]
    two = task(*holders, shape=ONE_STAGE, heirs=((), ()))
    flat, two_step = map_flat(two), map_two_step(two)
    nodes = {holder.worker_id: holder.node_id for holder in holders}
    assert flat.bytes_moved == 0
    assert two_step.bytes_moved == 4_000
    for pipeline in two_step.pipelines:
        assert len({nodes[worker_id] for worker_id in pipeline}) == 1


def test_nodes_of_one_worker_each_can_still_carry_a_stage_of_two_shards() -> None:
    holders = [Holder(worker_id=f"w{n}", node_id=f"n{n}") for n in range(4)]
    mapping = map_two_step(task(*holders, shape=ONE_STAGE, heirs=((), ())))
    assert sorted(w for pipeline in mapping.pipelines for w in pipeline) == ["w0", "w1", "w2", "w3"]


def test_leftovers_of_several_nodes_make_a_group_where_whole_groups_are_too_few() -> None:
    holders = [Holder(worker_id=f"w{n}", node_id=f"n{n // 3}") for n in range(6)]
    mapping = map_two_step(task(*holders, shape=ONE_STAGE, heirs=((), (), ())))
    assert len({w for pipeline in mapping.pipelines for w in pipeline}) == 6


def test_fresh_workers_are_taken_in_order_so_that_a_replica_stays_on_few_nodes() -> None:
    holders = [Holder(worker_id=f"w{n}", node_id=f"n{n // 2}") for n in range(4)]
    empty = task(*holders, shape=TWO_STAGES, heirs=((), ()))
    assert map_flat(empty).pipelines == (("w0", "w1"), ("w2", "w3"))


@pytest.mark.parametrize("chosen", [map_flat, map_two_step])
def test_it_moves_less_than_taking_the_workers_as_they_come(chosen: object) -> None:
    holders = [
        Holder(worker_id=f"w{n}", node_id="n", held=held("x", TWO_STAGES, 1 - n)) for n in range(2)
    ]
    mapped = task(*holders, shape=TWO_STAGES)
    assert callable(chosen)
    assert chosen(mapped).bytes_moved == 0
    assert map_in_order(mapped).bytes_moved == 4_000


def test_wider_shards_take_every_second_worker_of_a_node_as_its_new_group() -> None:
    four = ReplicaShape(stages=1, shards=4)
    holders = [
        Holder(worker_id=f"w{rank}", node_id="n", held=held("x", four, rank)) for rank in range(4)
    ]
    mapped = task(*holders, shape=ReplicaShape(stages=2, shards=2))
    assert map_two_step(mapped).bytes_moved == map_flat(mapped).bytes_moved == 2_000

"""Laws of mapping workers to positions: an optimum is an optimum, and nobody is placed twice."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.policy.device_mapping import (
    DeviceMapping,
    HeldPosition,
    Holder,
    MappingTask,
    bytes_kept,
    bytes_needed,
    map_flat,
    map_in_order,
    map_two_step,
)
from libs.policy.inheritance import EndingReplica, choose_heirs, share_of
from libs.policy.model_profile import ModelBytes
from libs.policy.shapes import ReplicaShape

SIZE = ModelBytes(
    layers=6,
    heads=4,
    kv_heads=2,
    layer_bytes=1_200,
    embedding_bytes=480,
    head_bytes=240,
    kv_bytes_per_token_layer=24,
)
SHAPES = [ReplicaShape(stages=p, shards=m) for p in (1, 2, 3, 6) for m in (1, 2, 4)]


@st.composite
def tasks(draw: st.DrawFn, *, workers_max: int) -> MappingTask:
    shape = draw(st.sampled_from([s for s in SHAPES if s.workers <= workers_max]))
    workers = draw(st.integers(min_value=shape.workers, max_value=workers_max))
    pipelines = draw(st.integers(min_value=1, max_value=workers // shape.workers))
    old = draw(st.lists(st.sampled_from(SHAPES), max_size=3))
    positions = [
        HeldPosition(replica_id=f"old-{n}", shape=s, stage=stage, shard=shard)
        for n, s in enumerate(old)
        for stage in range(s.stages)
        for shard in range(s.shards)
    ]
    held = draw(st.permutations([*positions, *[None] * workers]))[:workers]
    nodes = draw(st.lists(st.integers(0, 2), min_size=workers, max_size=workers))
    tokens = {f"old-{n}": draw(st.integers(0, 500)) for n in range(len(old))}
    ending = [EndingReplica(replica_id=r, kv_tokens=t) for r, t in tokens.items()]
    return MappingTask(
        size=SIZE,
        shape=shape,
        holders=[
            Holder(worker_id=f"w{n}", node_id=f"n{node}", held=position)
            for n, (node, position) in enumerate(zip(nodes, held, strict=True))
        ],
        heirs=choose_heirs(ending, pipelines=pipelines),
        kv_tokens=tokens,
    )


def best_by_trying_all(task: MappingTask) -> float:
    kept = bytes_kept(task)
    columns = np.arange(task.positions)
    return max(
        float(kept[np.array(order), columns].sum())
        for order in permutations(range(len(task.holders)), task.positions)
    )


def placed(mapping: DeviceMapping) -> list[str]:
    return [worker_id for pipeline in mapping.pipelines for worker_id in pipeline]


@settings(max_examples=60, deadline=None)
@given(tasks(workers_max=6))
def test_the_flat_mapping_keeps_as_much_as_the_best_of_all_mappings(task: MappingTask) -> None:
    assert map_flat(task).bytes_kept == best_by_trying_all(task)


@settings(max_examples=100, deadline=None)
@given(tasks(workers_max=12))
def test_two_steps_keep_no_more_than_flat_and_both_no_less_than_chance(task: MappingTask) -> None:
    flat, two_step, in_order = map_flat(task), map_two_step(task), map_in_order(task)
    assert in_order.bytes_kept <= flat.bytes_kept
    assert two_step.bytes_kept <= flat.bytes_kept <= flat.bytes_needed
    assert flat.bytes_needed == two_step.bytes_needed == bytes_needed(task)


@settings(max_examples=100, deadline=None)
@given(tasks(workers_max=12))
def test_every_position_has_one_worker_and_no_worker_two(task: MappingTask) -> None:
    for mapping in (map_flat(task), map_two_step(task)):
        assert len(placed(mapping)) == task.positions
        assert len(set(placed(mapping))) == task.positions


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 500))
def test_a_replica_that_need_not_change_stays_as_it_is(shape: ReplicaShape, tokens: int) -> None:
    held = [
        HeldPosition(replica_id="old-0", shape=shape, stage=stage, shard=shard)
        for stage in range(shape.stages)
        for shard in range(shape.shards)
    ]
    task = MappingTask(
        size=SIZE,
        shape=shape,
        holders=[Holder(worker_id=f"w{n}", node_id="n", held=h) for n, h in enumerate(held)],
        heirs=(("old-0",),),
        kv_tokens={"old-0": tokens},
    )
    for mapping in (map_flat(task), map_two_step(task)):
        assert mapping.bytes_moved == 0


def load_of(heirs: Sequence[Sequence[str]], tokens: dict[str, int]) -> list[float]:
    shares = share_of(heirs)
    return [sum(tokens[r] / shares[r] for r in replica_ids) for replica_ids in heirs]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1_000), max_size=8), st.integers(1, 8))
def test_every_ending_replica_has_an_heir_and_the_heaviest_have_their_own(
    tokens: list[int], pipelines: int
) -> None:
    ending = [EndingReplica(replica_id=f"r{n}", kv_tokens=t) for n, t in enumerate(tokens)]
    heirs = choose_heirs(ending, pipelines=pipelines)
    assert len(heirs) == pipelines
    assert {r for replica_ids in heirs for r in replica_ids} == {r.replica_id for r in ending}
    firsts = [replica_ids[0] for replica_ids in heirs if replica_ids]
    heaviest = sorted(ending, key=lambda r: (-r.kv_tokens, r.replica_id))[:pipelines]
    assert firsts[: len(heaviest)] == [r.replica_id for r in heaviest]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1_000), max_size=8), st.integers(1, 8))
def test_as_in_the_paper_what_is_too_much_is_dropped_least_tokens_first(
    tokens: list[int], pipelines: int
) -> None:
    ending = [EndingReplica(replica_id=f"r{n}", kv_tokens=t) for n, t in enumerate(tokens)]
    heirs = choose_heirs(ending, pipelines=pipelines, drops_surplus=True)
    kept = [replica_ids[0] for replica_ids in heirs if replica_ids]
    assert len(kept) == min(len(tokens), pipelines)
    lost = [r.kv_tokens for r in ending if r.replica_id not in kept]
    assert max(lost, default=0) <= min((tokens[int(r[1:])] for r in kept), default=0) or not lost

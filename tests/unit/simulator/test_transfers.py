"""Which bytes cross which link, and for how long."""

import math
from itertools import product

import pytest

from libs.policy.paper_profiles import GPT_20B
from libs.policy.shapes import ReplicaShape
from services.simulator.spot.hardware import G4DN_12XLARGE
from services.simulator.spot.transfers import (
    Placed,
    Traffic,
    box_of,
    disk_traffic,
    kv_traffic,
    weight_traffic,
)

SIZE = GPT_20B.size


def a_replica(*, stages: int, shards: int, first_gpu: int = 0) -> list[Placed]:
    """Ranks on consecutive GPUs, four to a node."""
    shape = ReplicaShape(stages=stages, shards=shards)
    return [
        Placed(
            worker_id=f"gpu-{first_gpu + rank}",
            node_id=f"node-{(first_gpu + rank) // 4}",
            shape=shape,
            stage=rank // shards,
            shard=rank % shards,
        )
        for rank in range(shape.workers)
    ]


def test_a_replica_that_stays_where_it_is_moves_nothing() -> None:
    replica = a_replica(stages=3, shards=4)
    traffic, loaded = weight_traffic(SIZE, holders=replica, targets=replica)
    assert traffic.duration_ns(G4DN_12XLARGE) == 0
    assert sum(part.kept for part in loaded.values()) == pytest.approx(SIZE.weight_bytes, rel=1e-6)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("shards", [4, 8])
def test_every_byte_of_the_model_is_kept_moved_or_loaded_once(stages: int, shards: int) -> None:
    targets = a_replica(stages=stages, shards=shards)
    holders = a_replica(stages=3, shards=4)[:-4]  # the last stage is lost
    _, loaded = weight_traffic(SIZE, holders=holders, targets=targets)
    planned = sum(part.planned for part in loaded.values())
    from_disk = sum(part.from_disk for part in loaded.values())
    assert planned == pytest.approx(SIZE.weight_bytes, rel=1e-6)
    lost_layers = 14  # of 44 in three stages: 15, 15, 14
    assert from_disk == pytest.approx(lost_layers * SIZE.layer_bytes, rel=1e-6)
    assert all(p.planned == p.kept + p.from_peers + p.from_disk for p in loaded.values())


def test_a_holder_on_the_same_node_is_preferred() -> None:
    (near, far) = a_replica(stages=1, shards=4), a_replica(stages=1, shards=4, first_gpu=8)
    (target,) = (p for p in a_replica(stages=1, shards=4, first_gpu=4) if p.shard == 0)
    neighbour = Placed(
        worker_id="neighbour", node_id=target.node_id, shape=target.shape, stage=0, shard=0
    )
    traffic, _ = weight_traffic(SIZE, holders=[*near, neighbour, *far], targets=[target])
    assert not traffic.sent
    assert traffic.local == {target.node_id: pytest.approx(SIZE.weight_bytes / 4, rel=1e-6)}


def test_far_holders_share_the_sending() -> None:
    holders = [*a_replica(stages=1, shards=4), *a_replica(stages=1, shards=4, first_gpu=4)]
    traffic, _ = weight_traffic(
        SIZE, holders=holders, targets=a_replica(stages=1, shards=4, first_gpu=8)
    )
    assert set(traffic.sent) == {"node-0", "node-1"}
    assert traffic.sent["node-0"] == traffic.sent["node-1"]


def test_a_restart_loads_what_it_had() -> None:
    replica = a_replica(stages=3, shards=4)
    traffic, loaded = disk_traffic(SIZE, replica)
    assert sum(part.from_disk for part in loaded.values()) == pytest.approx(SIZE.weight_bytes)
    assert set(traffic.from_disk) == {"node-0", "node-1", "node-2"}


def test_kv_goes_where_its_layers_and_heads_go() -> None:
    source = a_replica(stages=1, shards=4)
    target = a_replica(stages=2, shards=4, first_gpu=4)
    traffic = kv_traffic(SIZE, source=source, target=target, tokens=600)
    whole = 600 * SIZE.layers * SIZE.kv_bytes_per_token_layer
    assert sum(traffic.received.values()) == pytest.approx(whole, rel=1e-6)
    assert sum(traffic.sent.values()) == sum(traffic.received.values())


def test_links_of_one_kind_work_at_once_and_kinds_one_after_another() -> None:
    traffic = Traffic()
    for target in ("node-1", "node-2"):
        traffic.carry(source_node="node-0", target_node=target, size_bytes=6_250_000_000)
    traffic.carry(source_node="node-1", target_node="node-1", size_bytes=6_250_000_000)
    assert traffic.duration_ns(G4DN_12XLARGE) == 3_000_000_000


@pytest.mark.parametrize(("stages", "shards"), [(1, 4), (2, 4), (3, 4), (2, 8)])
def test_kv_that_is_sent_together_comes_to_what_each_pair_of_workers_sends(
    stages: int, shards: int
) -> None:
    source = a_replica(stages=3, shards=4)[1:]  # one is lost
    target = a_replica(stages=stages, shards=shards, first_gpu=2)  # some stay where they are
    pairs_bytes = 0
    for holder, heir in product(source, target):
        held, needed = box_of(SIZE, holder), box_of(SIZE, heir)
        layers = min(held.layer_stop, needed.layer_stop) - max(held.layer_start, needed.layer_start)
        share = min(held.share_stop, needed.share_stop) - max(held.share_start, needed.share_start)
        if layers > 0 and share > 0 and holder.worker_id != heir.worker_id:
            pairs_bytes += math.ceil(layers * share * SIZE.kv_bytes_per_token_layer * 600)
    traffic = kv_traffic(SIZE, source=source, target=target, tokens=600)
    assert sum((*traffic.sent.values(), *traffic.local.values())) == pairs_bytes > 0

"""A small model's KV, cut as the engine cuts it, and rosters of its replicas."""

from collections.abc import Sequence
from itertools import pairwise

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from services.gpu_worker.peers.kv_plan import KvGeometry

LAYERS, KV_HEADS, HEAD_SIZE, BLOCK_TOKENS, BLOCKS = 5, 4, 8, 4, 24
CELL_BYTES = BLOCK_TOKENS * 2 * HEAD_SIZE * 4
"""Of one head of one layer of one block, in fp32."""
MODEL_BLOCK_BYTES = LAYERS * KV_HEADS * CELL_BYTES


def rectangles(stages: int, shards: int) -> list[tuple[range, range]]:
    """Cut the model as the engine does, KV heads replicated where there are more shards."""
    heads_each = max(1, KV_HEADS // shards)
    edges = [stage * LAYERS // stages for stage in range(stages + 1)]
    starts = [shard * KV_HEADS // shards for shard in range(shards)]
    return [
        (range(first, stop), range(start, start + heads_each))
        for first, stop in pairwise(edges)
        for start in starts
    ]


GEOMETRY = KvGeometry(rectangles=rectangles, cell_bytes=CELL_BYTES)


def roster_of(
    replica_id: str,
    shape: tuple[int, int],
    workers: Sequence[tuple[str, str]],
    *,
    epoch: int = 1,
) -> ReplicaRoster:
    """Place these workers, as (id, address), in the order of ranks."""
    stages, shards = shape
    return ReplicaRoster(
        replica_id=replica_id,
        replica_epoch=epoch,
        stages=stages,
        shards=shards,
        workers=tuple(
            PlacedWorker(
                worker_id=worker_id,
                peer_address=address,
                stage=rank // shards,
                shard=rank % shards,
            )
            for rank, (worker_id, address) in enumerate(workers)
        ),
    )

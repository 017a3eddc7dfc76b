"""How a worker's memory is shared between weights and the KV of the position it serves and stages.

A hand-over holds two positions at a time, so each gets half of what the weights leave. The number
of KV blocks is the least that any rank of the shape has room for in so much memory: workers with
equal memory come to the same number, and KV can be copied in before they have met.
"""

from dataclasses import dataclass
from typing import Final

from libs.engine.parallel.member import ReplicaModel
from libs.engine.parallel.position import Position, positions_of
from libs.engine.parallel.slices import all_slices_of
from services.gpu_worker.checkpoint_options import HostRoom, host_room

POSITIONS_AT_A_TIME: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionMemory:
    """What a worker may use."""

    memory_bytes: int
    """For weights and KV of all positions."""
    kv_bytes_max: int | None = None
    """For KV of one position at most."""
    blocks_max: int | None = None
    """KV blocks of one position at most."""
    host_bytes: int = 0
    """Host memory for checkpoints of one position; 0: there are none."""

    def kv_blocks(self, model: ReplicaModel, *, stages: int, shards: int) -> int:
        """Return the KV blocks of a replica of this shape; 0 if not even the weights fit."""
        positions = positions_of(model.config, stages=stages, shards=shards)
        blocks = min(self._kv_blocks_at(model, position) for position in positions)
        return blocks if self.blocks_max is None else min(blocks, self.blocks_max)

    def host_room(self, model: ReplicaModel, *, stages: int, shards: int) -> HostRoom:
        """Return the room for checkpoints of a replica of this shape, the same on all its ranks."""
        positions = positions_of(model.config, stages=stages, shards=shards)
        return host_room(
            host_bytes=self.host_bytes,
            block_bytes=max(
                model.kv_shape(position, blocks=1).bytes_total(model.dtype)
                for position in positions
            ),
            kv_blocks=self.kv_blocks(model, stages=stages, shards=shards),
        )

    def blocks_min(self, model: ReplicaModel) -> int:
        """Return the KV blocks of the longest session that is admitted; fewer are of no use."""
        wanted = model.options.context_tokens_max or model.config.shape.context_tokens_max
        context_tokens = min(wanted, model.config.shape.context_tokens_max)
        return -(-context_tokens // model.options.block_tokens)

    def _kv_blocks_at(self, model: ReplicaModel, position: Position) -> int:
        kv_bytes = (self.memory_bytes - weights_bytes_at(model, position)) // POSITIONS_AT_A_TIME
        if self.kv_bytes_max is not None:
            kv_bytes = min(kv_bytes, self.kv_bytes_max)
        return model.kv_blocks_that_fit(position, kv_bytes=max(0, kv_bytes))


def weights_bytes_at(model: ReplicaModel, position: Position) -> int:
    """Return the bytes of a position's weights, the packed copy for steps on a CPU included."""
    element_bytes = model.dtype.itemsize
    plain = sum(
        slice_.bytes
        for slice_ in all_slices_of(model.config, position, element_bytes=element_bytes)
    )
    is_doubled = model.device.type == "cpu" and model.options.pack_linears
    return 2 * plain if is_doubled else plain

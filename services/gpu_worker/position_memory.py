"""How a worker's memory is shared between weights and the KV of the position it serves and stages.

A hand-over holds two positions at a time, so each gets half of what the weights leave. The number
of KV blocks is the least that any rank of the shape has room for in so much memory: workers with
equal memory come to the same number, and KV can be copied in before they have met.
"""

from dataclasses import dataclass

from libs.contracts.reports import MemoryRule
from libs.engine.linear import is_packing_sound, is_row_copy_faster
from libs.engine.parallel.member import ReplicaModel
from libs.engine.parallel.memory_needs import ReplicaMemory
from libs.policy.shapes import ReplicaShape
from services.gpu_worker.checkpoint_options import HostRoom, host_room


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
        blocks = replica_memory(model).blocks_that_fit(
            ReplicaShape(stages=stages, shards=shards),
            memory_bytes=self.memory_bytes,
            kv_bytes_max=self.kv_bytes_max,
        )
        return min(blocks, self.blocks_max or blocks, model.blocks_useful)

    def host_room(self, model: ReplicaModel, *, stages: int, shards: int) -> HostRoom:
        """Return the room for checkpoints of a replica of this shape, the same on all its ranks."""
        needs = replica_memory(model).stages(ReplicaShape(stages=stages, shards=shards))
        return host_room(
            host_bytes=self.host_bytes,
            block_bytes=max(stage.kv_block_bytes for stage in needs),
            kv_blocks=self.kv_blocks(model, stages=stages, shards=shards),
        )

    def blocks_min(self, model: ReplicaModel) -> int:
        """Return the KV blocks of the longest session that is admitted; fewer are of no use."""
        return -(-_context_tokens_max(model) // model.options.block_tokens)


def replica_memory(model: ReplicaModel) -> ReplicaMemory:
    """Return the arithmetic that planner and workers share, for this worker's engine."""
    return ReplicaMemory(
        config=model.config,
        rule=memory_rule(model),
        block_tokens=model.options.block_tokens,
        context_tokens_max=_context_tokens_max(model),
    )


def memory_rule(model: ReplicaModel) -> MemoryRule:
    """Say how this worker's engine holds weights, as `DecoderBuilder` builds it."""
    is_packed = (
        model.device.type == "cpu" and model.options.pack_linears and is_packing_sound(model.dtype)
    )
    has_row_copies = is_packed and is_row_copy_faster(model.dtype)
    return MemoryRule(
        element_bytes=model.dtype.itemsize,
        packed_copies=int(is_packed),
        row_copy_bytes_max=model.options.row_copy_bytes_max if has_row_copies else 0,
    )


def _context_tokens_max(model: ReplicaModel) -> int:
    wanted = model.options.context_tokens_max or model.config.shape.context_tokens_max
    return min(wanted, model.config.shape.context_tokens_max)

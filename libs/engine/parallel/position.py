"""Where one process stands in a replica: which layers, which heads, which rank.

    stages = 2, shards = 2, 8 layers, 4 KV heads

                 shard 0         shard 1
    stage 0      rank 0          rank 1          layers 0..3
    stage 1      rank 2 (lead)   rank 3          layers 4..7
                 KV heads 0, 1   KV heads 2, 3

With more shards than KV heads, neighbouring shards hold the same KV head, each for its own part of
the query heads that read it.
"""

from dataclasses import dataclass
from itertools import pairwise

from libs.engine.model_config import ModelConfig
from libs.kernel.core import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One process's place in a replica of `stages` x `shards`."""

    stages: int
    shards: int
    stage: int
    shard: int
    layer_start: int
    layer_stop: int

    def __post_init__(self) -> None:
        require(0 <= self.stage < self.stages, f"stage {self.stage} of {self.stages}")
        require(0 <= self.shard < self.shards, f"shard {self.shard} of {self.shards}")
        require(0 <= self.layer_start < self.layer_stop, f"no layers at stage {self.stage}")

    @property
    def ranks(self) -> int:
        """Processes of the replica."""
        return self.stages * self.shards

    @property
    def rank(self) -> int:
        """This process's number in the replica: stage by stage."""
        return self.stage * self.shards + self.shard

    @property
    def lead_rank(self) -> int:
        """The rank that schedules and samples."""
        return (self.stages - 1) * self.shards

    @property
    def is_lead(self) -> bool:
        """Whether this process schedules and samples."""
        return self.rank == self.lead_rank

    @property
    def is_first_stage(self) -> bool:
        """Whether tokens enter here."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether logits leave here."""
        return self.stage == self.stages - 1

    @property
    def layers(self) -> range:
        """The layers it computes."""
        return range(self.layer_start, self.layer_stop)

    def head_range(self, config: ModelConfig) -> range:
        """Return the query heads it computes."""
        return self.share(config.heads)

    def kv_head_range(self, config: ModelConfig) -> range:
        """Return the KV heads it holds; a shard never holds less than one."""
        first = self.shard * config.kv_heads // self.shards
        return range(first, first + max(1, config.kv_heads // self.shards))

    def share(self, units: int) -> range:
        """Return this shard's part of so many rows; the parts differ by at most one."""
        return range(self.shard * units // self.shards, (self.shard + 1) * units // self.shards)


def layer_ranges(layers: int, *, stages: int) -> tuple[range, ...]:
    """Cut the layers into consecutive stages that differ by at most one layer."""
    edges = [stage * layers // stages for stage in range(stages + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(edges))


def position_at(
    config: ModelConfig, *, stages: int, shards: int, stage: int, shard: int
) -> Position:
    """Return the position of one stage and shard of a shape that `check_shape` accepts."""
    layers = layer_ranges(config.layers, stages=stages)[stage]
    return Position(
        stages=stages,
        shards=shards,
        stage=stage,
        shard=shard,
        layer_start=layers.start,
        layer_stop=layers.stop,
    )


def positions_of(config: ModelConfig, *, stages: int, shards: int) -> tuple[Position, ...]:
    """Return all positions of a shape that `check_shape` accepts, in the order of ranks."""
    return tuple(
        position_at(config, stages=stages, shards=shards, stage=stage, shard=shard)
        for stage in range(stages)
        for shard in range(shards)
    )


def check_shape(config: ModelConfig, *, stages: int, shards: int) -> str | None:
    """Say in one sentence why the model cannot be cut so, or None if it can."""
    if stages < 1 or shards < 1:
        return f"{stages} stages of {shards} shards: at least 1 of each is needed"
    if stages > config.layers:
        return f"{stages} stages are more than the {config.layers} layers"
    for units, what in (
        (config.heads, "attention heads"),
        (config.intermediate_size, "intermediate units"),
    ):
        if units % shards != 0:
            return f"{shards} shards do not divide the {units} {what}"
    if config.kv_heads % shards != 0 and shards % config.kv_heads != 0:
        return f"{shards} shards neither divide the {config.kv_heads} KV heads nor are a multiple"
    return None

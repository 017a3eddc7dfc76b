"""How a model is cut: D replicas of P stages x M shards, each computing up to B sequences."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ReplicaShape:
    """P pipeline stages of M tensor shards; ranks count `stage * shards + shard`."""

    stages: int
    shards: int

    def __post_init__(self) -> None:
        assert self.stages >= 1
        assert self.shards >= 1

    @property
    def workers(self) -> int:
        """Workers of one replica."""
        return self.stages * self.shards


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """C = (D, P, M, B) of the paper (section 3.2)."""

    replicas: int
    shape: ReplicaShape
    batch: int

    @property
    def workers(self) -> int:
        """Workers that compute; what is left over is spare."""
        return self.replicas * self.shape.workers


def layer_range(*, layers: int, stages: int, stage: int) -> range:
    """Return the layers of a stage: even, the longer stages first."""
    quotient, longer = divmod(layers, stages)
    start = stage * quotient + min(stage, longer)
    return range(start, start + quotient + (stage < longer))

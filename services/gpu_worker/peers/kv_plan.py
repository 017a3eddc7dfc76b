"""Who sends which KV to whom in one copy, in which batches and pieces; pure.

A copy goes from one replica to another of any shape. Each rank of the source sends, for every
block that moves, the rectangles of layers and heads that `libs.transfer.layout` routes from it. A
batch is what is committed at once; a piece is what is gathered, sent and scattered at once.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from libs.contracts.peers import BLOCKS_PER_BATCH_MAX
from libs.transfer.layout import KvRank, KvRoute, can_route_kv, kv_routes
from libs.transfer.spans import Span

BlockPair = tuple[int, int]
"""A block of the source and the block of the target that takes its content."""
WantedBlock = tuple[int, int, int]
"""A prefix hash, the block of the source that it names, and the block of the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGeometry:
    """How the model's KV is cut, whatever the shape of a replica."""

    rectangles: Callable[[int, int], Sequence[tuple[range, range]]]
    """Layers and KV heads of each rank, in order, of a replica of so many stages and shards."""
    cell_bytes: int
    """One block of one KV head of one layer, keys and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """Layers and KV heads, counted over the whole model."""

    layers: range
    heads: range

    @property
    def cells(self) -> int:
        """Pairs of a layer and a head."""
        return len(self.layers) * len(self.heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """The routes of one copy."""

    routes: tuple[KvRoute, ...]
    geometry: KvGeometry

    @property
    def bytes_per_block(self) -> int:
        """What one block costs, over all ranks of the target."""
        return sum(route.cells for route in self.routes) * self.geometry.cell_bytes

    def by_source(self) -> dict[str, tuple[KvRoute, ...]]:
        """Return what each worker of the source sends; who sends nothing is left out."""
        routes: dict[str, list[KvRoute]] = defaultdict(list)
        for route in self.routes:
            routes[route.source_rank.worker_id].append(route)
        return {worker_id: tuple(routes[worker_id]) for worker_id in sorted(routes)}

    def batches(
        self, blocks: Sequence[WantedBlock], *, batch_bytes_max: int
    ) -> list[Sequence[WantedBlock]]:
        """Cut the blocks, in their order, into what is committed at once: one at least."""
        size = max(1, min(BLOCKS_PER_BATCH_MAX, batch_bytes_max // self.bytes_per_block))
        return [blocks[start : start + size] for start in range(0, len(blocks), size)]


def copy_plan(
    source: ReplicaRoster, target: ReplicaRoster, geometry: KvGeometry
) -> CopyPlan | None:
    """Route every layer and head of every target rank once; None if the source lacks some."""
    sources, targets = kv_ranks(source, geometry), kv_ranks(target, geometry)
    if not can_route_kv(sources, targets):
        return None
    return CopyPlan(routes=kv_routes(sources, targets), geometry=geometry)


def kv_ranks(roster: ReplicaRoster, geometry: KvGeometry) -> tuple[KvRank, ...]:
    """Return the KV that each worker of a replica holds, in the order of ranks."""
    rectangles = geometry.rectangles(roster.stages, roster.shards)
    return tuple(
        KvRank(
            worker_id=worker.worker_id,
            layers=Span(layers.start, layers.stop),
            heads=Span(heads.start, heads.stop),
        )
        for worker in sorted(roster.workers, key=lambda worker: rank_of(worker, roster))
        for layers, heads in (rectangles[rank_of(worker, roster)],)
    )


def rank_of(worker: PlacedWorker, roster: ReplicaRoster) -> int:
    """Return a worker's number in its replica."""
    return worker.stage * roster.shards + worker.shard


def pieces_of(blocks: int, *, block_bytes: int, piece_bytes_max: int) -> tuple[range, ...]:
    """Cut so many blocks into pieces, each a range of their indices, of one block at least."""
    size = max(1, piece_bytes_max // block_bytes)
    return tuple(range(at, min(at + size, blocks)) for at in range(0, blocks, size))

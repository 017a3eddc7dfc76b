"""Who sends which part of KV and weights to whom, between replicas of any two shapes.

A replica of P stages and M shards cuts KV into rectangles of layers and KV heads, one per rank:

             kv heads 0   1   2   3                    0   1   2   3
    layers 0..3     +-------+-------+                +---------------+
                    | a     | b     |      --->      | a             |
    layers 4..7     +-------+-------+                |               |
                    | c     | d     |                +---------------+  (1 stage, 1 shard)
                    +-------+-------+
              2 stages, 2 shards                      b, c, d each send one rectangle

With more shards than KV heads several ranks hold the same heads; then one of them sends. Loads are
balanced in the order of the targets and ties go to the earlier source, so that every planner that
computes the same plan computes the same routes.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from libs.kernel.core import require
from libs.transfer.spans import Span, joined, without


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRank:
    """The KV that one worker holds, or shall hold: these heads of these layers."""

    worker_id: str
    layers: Span
    heads: Span

    def holds(self, *, layers: Span, heads: Span) -> bool:
        """Whether the whole rectangle is part of this rank's KV."""
        return self.layers.covers(layers) and self.heads.covers(heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRoute:
    """One rectangle of KV that `source_rank` gives to `target_rank`, for every block moved."""

    source_rank: KvRank
    target_rank: KvRank
    layers: Span
    heads: Span

    @property
    def is_local(self) -> bool:
        """Whether it is a copy inside one worker, which crosses no link."""
        return self.source_rank.worker_id == self.target_rank.worker_id

    @property
    def cells(self) -> int:
        """Pairs of layer and head: what a route costs, in units of one head's KV of one layer."""
        return len(self.layers) * len(self.heads)


def can_route_kv(source_ranks: Sequence[KvRank], target_ranks: Sequence[KvRank]) -> bool:
    """Whether the sources together hold all that the targets want."""
    return all(
        any(source.holds(layers=layers, heads=heads) for source in source_ranks)
        for target in target_ranks
        for layers, heads in _rectangles(target, source_ranks)
    )


def kv_routes(
    source_ranks: Sequence[KvRank], target_ranks: Sequence[KvRank]
) -> tuple[KvRoute, ...]:
    """Route each layer and head of each target from exactly one source that holds it.

    A target that holds a rectangle already copies it from itself. Among other holders the one that
    sends least so far is chosen. Raises: InvariantViolation unless `can_route_kv`.
    """
    cells_sent: dict[str, int] = defaultdict(int)
    routes: list[KvRoute] = []
    for target in target_ranks:
        chosen: list[KvRoute] = []
        for layers, heads in _rectangles(target, source_ranks):
            source = _kv_source(source_ranks, target, layers, heads, cells_sent)
            route = KvRoute(source_rank=source, target_rank=target, layers=layers, heads=heads)
            if not route.is_local:
                cells_sent[source.worker_id] += route.cells
            chosen.append(route)
        routes.extend(_merged(chosen))
    return tuple(routes)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TensorSlice:
    """Rows `start` to `stop` of a tensor along its shard axis, each of `bytes_per_unit`."""

    tensor: str
    start: int
    stop: int
    bytes_per_unit: int

    @property
    def span(self) -> Span:
        """The rows."""
        return Span(self.start, self.stop)

    @property
    def bytes(self) -> int:
        """Size of the slice."""
        return len(self.span) * self.bytes_per_unit

    def part(self, span: Span) -> "TensorSlice":
        """Return these rows of the same tensor."""
        return replace(self, start=span.start, stop=span.stop)

    def split(self, *, bytes_max: int) -> tuple["TensorSlice", ...]:
        """Cut into parts of at most `bytes_max`, or of one row where a row is larger."""
        units = max(1, bytes_max // self.bytes_per_unit)
        starts = range(self.start, self.stop, units)
        return tuple(self.part(Span(at, min(at + units, self.stop))) for at in starts)


@dataclass(frozen=True, slots=True)
class FromOwnStore:
    """The target has it already."""


@dataclass(frozen=True, slots=True)
class FromPeer:
    """Another worker sends it."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class FromDisk:
    """No worker holds it: it is read from the model's files."""


WeightSource = FromOwnStore | FromPeer | FromDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRoute:
    """One slice and where its target gets it."""

    slice: TensorSlice
    source: WeightSource


def missing(wanted: Iterable[TensorSlice], held: Iterable[TensorSlice]) -> tuple[TensorSlice, ...]:
    """Return the parts of `wanted` that `held` does not cover, in the order of `wanted`."""
    held_spans: dict[str, list[Span]] = defaultdict(list)
    for slice_ in held:
        held_spans[slice_.tensor].append(slice_.span)
    return tuple(
        slice_.part(span)
        for slice_ in wanted
        for span in without(slice_.span, held_spans[slice_.tensor])
    )


def weight_routes(
    *,
    targets: Mapping[str, Sequence[TensorSlice]],
    holders: Mapping[str, Sequence[TensorSlice]],
    dying: frozenset[str],
) -> dict[str, tuple[WeightRoute, ...]]:
    """Route each wanted row of each target once: from its own store, a peer, or the disk.

    Among peers one that will live is preferred to a dying one, whose time its KV needs; then the
    one that sends fewest bytes so far; then the lower id. Both mappings are by worker id.
    """
    bytes_sent: dict[str, int] = defaultdict(int)
    by_tensor = _holders_by_tensor(holders)
    routes: dict[str, tuple[WeightRoute, ...]] = {}
    for target_id in sorted(targets):
        chosen: list[WeightRoute] = []
        for wanted in targets[target_id]:
            held = by_tensor.get(wanted.tensor, [])
            for span in wanted.span.cut_at(slice_.span for _, slice_ in held):
                part = wanted.part(span)
                peers = _worker_ids_holding(part, held)
                source = _weight_source(target_id, peers, dying, bytes_sent)
                if isinstance(source, FromPeer):
                    bytes_sent[source.worker_id] += part.bytes
                chosen.append(WeightRoute(slice=part, source=source))
        routes[target_id] = _joined_routes(chosen)
    return routes


def _rectangles(target: KvRank, sources: Sequence[KvRank]) -> Iterable[tuple[Span, Span]]:
    """Cut the target's KV so that each part lies wholly in or out of each source's."""
    for layers in target.layers.cut_at(source.layers for source in sources):
        for heads in target.heads.cut_at(source.heads for source in sources):
            yield layers, heads


def _kv_source(
    sources: Sequence[KvRank],
    target: KvRank,
    layers: Span,
    heads: Span,
    cells_sent: Mapping[str, int],
) -> KvRank:
    holders = [source for source in sources if source.holds(layers=layers, heads=heads)]
    require(bool(holders), f"no source holds layers {layers}, heads {heads}")
    for holder in holders:
        if holder.worker_id == target.worker_id:
            return holder
    return min(holders, key=lambda holder: cells_sent.get(holder.worker_id, 0))


def _merged(routes: Sequence[KvRoute]) -> list[KvRoute]:
    """Join rectangles of one source: first those side by side, then those that lie stacked."""
    heads_of: dict[tuple[KvRank, Span], list[Span]] = defaultdict(list)
    for route in routes:
        heads_of[route.source_rank, route.layers].append(route.heads)
    layers_of: dict[tuple[KvRank, Span], list[Span]] = defaultdict(list)
    for (source, layers), all_heads in heads_of.items():
        for heads in joined(all_heads):
            layers_of[source, heads].append(layers)
    return [
        replace(routes[0], source_rank=source, layers=layers, heads=heads)
        for (source, heads), all_layers in layers_of.items()
        for layers in joined(all_layers)
    ]


def _holders_by_tensor(
    holders: Mapping[str, Sequence[TensorSlice]],
) -> dict[str, list[tuple[str, TensorSlice]]]:
    by_tensor: dict[str, list[tuple[str, TensorSlice]]] = defaultdict(list)
    for worker_id in sorted(holders):
        for slice_ in holders[worker_id]:
            by_tensor[slice_.tensor].append((worker_id, slice_))
    return by_tensor


def _worker_ids_holding(part: TensorSlice, held: Sequence[tuple[str, TensorSlice]]) -> list[str]:
    for _, slice_ in held:
        require(
            slice_.bytes_per_unit == part.bytes_per_unit,
            f"{part.tensor}: rows of {part.bytes_per_unit} and {slice_.bytes_per_unit} bytes",
        )
    return [worker_id for worker_id, slice_ in held if slice_.span.covers(part.span)]


def _weight_source(
    target_id: str,
    worker_ids: Sequence[str],
    dying: frozenset[str],
    bytes_sent: Mapping[str, int],
) -> WeightSource:
    if target_id in worker_ids:
        return FromOwnStore()
    if not worker_ids:
        return FromDisk()
    return FromPeer(
        min(worker_ids, key=lambda peer: (peer in dying, bytes_sent.get(peer, 0), peer))
    )


def _joined_routes(routes: Sequence[WeightRoute]) -> tuple[WeightRoute, ...]:
    """Join neighbouring rows that come from the same place."""
    result: list[WeightRoute] = []
    for route in routes:
        last = result[-1] if result else None
        if (
            last is not None
            and last.source == route.source
            and last.slice.tensor == route.slice.tensor
            and last.slice.stop == route.slice.start
        ):
            grown = replace(last.slice, stop=route.slice.stop)
            result[-1] = replace(last, slice=grown)
        else:
            result.append(route)
    return tuple(result)

"""Where the weights of a staged position come from, in the order in which they are to arrive.

Every worker of a hand-over computes the routes of all its targets and takes its own: so no holder
is asked for more than its share, and nobody has to be told. Pure.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from libs.contracts.handover import LoadWeights, PlacedWorker, ReplicaRoster, WeightsFrom
from libs.engine.model_config import ModelConfig
from libs.engine.parallel.position import position_at
from libs.engine.parallel.slices import Slices, slices_of
from libs.transfer.layout import (
    FromDisk,
    FromOwnStore,
    FromPeer,
    TensorSlice,
    WeightRoute,
    missing,
    weight_routes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBatch:
    """Slices that are fetched at a time: those of a layer, or of several small ones."""

    from_peers: Mapping[str, tuple[TensorSlice, ...]]
    """By the worker that sends them."""
    from_disk: tuple[TensorSlice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """All that one worker fetches for one position."""

    batches: tuple[WeightBatch, ...]
    bytes_planned: int
    bytes_kept: int
    """Of the position's weights, what is here already."""
    address_by_peer: Mapping[str, str]


def plan_weights(
    message: LoadWeights,
    *,
    worker_id: str,
    target: ReplicaRoster,
    held: Sequence[TensorSlice],
    config: ModelConfig,
    element_bytes: int,
) -> WeightPlan:
    """Route what the position lacks, layers in the order that the message asks for.

    `held` is what this worker really has: what a roster promised and is not here comes from disk.
    What it holds for its other position it does not read again, wherever the rest comes from.
    """
    is_from_disk = message.weights_from is WeightsFrom.DISK
    rosters = () if is_from_disk else message.holders
    own = _slices_by_worker([target], config, element_bytes)[worker_id]
    targets = _slices_by_worker([*message.targets, target], config, element_bytes)
    holders = _slices_by_worker(rosters, config, element_bytes)
    routes = weight_routes(
        targets={name: _in_a_row(slices) for name, slices in targets.items()},
        holders={name: _in_a_row(slices) for name, slices in holders.items()},
        dying=frozenset(w.worker_id for w in _workers(rosters) if w.is_leaving),
    )
    fetched = _without_held(routes[worker_id], held)
    batches = _batches(fetched, own, message)
    wanted_bytes = sum(slice_.bytes for slice_ in _in_a_row(own))
    planned_bytes = sum(route.slice.bytes for route in fetched)
    return WeightPlan(
        batches=batches,
        bytes_planned=planned_bytes,
        bytes_kept=wanted_bytes - planned_bytes,
        address_by_peer={w.worker_id: w.peer_address for w in _workers(rosters)},
    )


def _workers(rosters: Iterable[ReplicaRoster]) -> Iterable[PlacedWorker]:
    return (worker for roster in rosters for worker in roster.workers)


def _slices_by_worker(
    rosters: Iterable[ReplicaRoster], config: ModelConfig, element_bytes: int
) -> dict[str, Slices]:
    """Return what each worker has to hold; of a worker in two rosters, what the last one says."""
    return {
        worker.worker_id: slices_of(
            config,
            position_at(
                config,
                stages=roster.stages,
                shards=roster.shards,
                stage=worker.stage,
                shard=worker.shard,
            ),
            element_bytes=element_bytes,
        )
        for roster in rosters
        for worker in roster.workers
    }


def _in_a_row(slices: Slices) -> tuple[TensorSlice, ...]:
    return tuple(slice_ for layer_slices in slices.values() for slice_ in layer_slices)


def _without_held(
    routes: Sequence[WeightRoute], held: Sequence[TensorSlice]
) -> tuple[WeightRoute, ...]:
    return tuple(
        WeightRoute(
            slice=part,
            source=FromDisk() if isinstance(route.source, FromOwnStore) else route.source,
        )
        for route in routes
        for part in missing([route.slice], held)
    )


def _batches(
    routes: Sequence[WeightRoute], own: Slices, message: LoadWeights
) -> tuple[WeightBatch, ...]:
    layer_by_tensor = {slice_.tensor: layer for layer, slices in own.items() for slice_ in slices}
    by_layer: dict[int | None, list[WeightRoute]] = defaultdict(list)
    for route in routes:
        by_layer[layer_by_tensor[route.slice.tensor]].append(route)
    batches: list[WeightBatch] = []
    batch: list[WeightRoute] = []
    for layer in _in_order(by_layer, message.layer_order):
        batch += by_layer[layer]
        if sum(route.slice.bytes for route in batch) >= message.buffer_bytes_max:
            batches.append(_batch_of(batch))
            batch = []
    if batch:
        batches.append(_batch_of(batch))
    return tuple(batches)


def _in_order(layers: Collection[int | None], wanted: Sequence[int]) -> list[int | None]:
    """Return what belongs to no layer, then the layers as wanted, then the others, ascending."""
    rank = {layer: index for index, layer in enumerate(wanted)}
    numbered = [layer for layer in layers if layer is not None]
    in_order = sorted(numbered, key=lambda layer: (rank.get(layer, len(rank)), layer))
    return [*([None] if None in layers else []), *in_order]


def _batch_of(routes: Sequence[WeightRoute]) -> WeightBatch:
    from_peers: dict[str, list[TensorSlice]] = defaultdict(list)
    from_disk: list[TensorSlice] = []
    for route in routes:
        if isinstance(route.source, FromPeer):
            from_peers[route.source.worker_id].append(route.slice)
        else:
            from_disk.append(route.slice)
    return WeightBatch(
        from_peers={name: tuple(slices) for name, slices in sorted(from_peers.items())},
        from_disk=tuple(from_disk),
    )

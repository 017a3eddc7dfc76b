"""Which worker takes which position, so that the fewest bytes move.

Source: SpotServe section 3.3 and its artifact. Workers and positions form a complete bipartite
graph; an edge weighs the bytes that the worker holds and the position needs: weights, and KV if the
pipeline inherits the replica that the worker belongs to. The heaviest matching (Kuhn-Munkres) moves
least. Departs from the artifact in counting real bytes.

    map_flat      over all workers at once: the optimum
    map_two_step  first inside a group of workers of one node, then groups to slots, so that the
                  shards of one stage stay on one node and talk over its fast links; may move more

After the two steps each node matches all its workers anew with the positions that fell to it. The
artifact's fixed groups cannot halve a stage's shards otherwise: of four shards on a node, two wide
ones want {0, 2} and {1, 3}, while groups of neighbours are {0, 1} and {2, 3}.

A new pipeline that is an old replica, its workers unchanged, need not be matched at all: leaving it
where it is belongs to some optimum. (Let worker u hold exactly what position v needs, and let an
optimum send u to w and x to v. |u & w| + |x & u| <= |u| + |x & w| for any sets, so swapping loses
nothing.) The caller therefore maps only what changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from libs.policy.inheritance import share_of
from libs.policy.model_profile import ModelBytes
from libs.policy.shapes import ReplicaShape, layer_range

Bytes: TypeAlias = npt.NDArray[np.float64]
"""Exact up to 2^53."""
Indices: TypeAlias = npt.NDArray[np.intp]

NO_REPLICA: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPosition:
    """A part of a replica whose weights and KV a worker holds."""

    replica_id: str
    shape: ReplicaShape
    stage: int
    shard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A worker that can be placed, and what it holds now; None: nothing of this model."""

    worker_id: str
    node_id: str
    held: HeldPosition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingTask:
    """What is to be mapped: these workers onto so many pipelines of one shape."""

    size: ModelBytes
    shape: ReplicaShape
    holders: Sequence[Holder]
    heirs: Sequence[Sequence[str]]
    """For each pipeline, the replicas that it inherits."""
    kv_tokens: Mapping[str, int]
    """Tokens that each of those holds."""

    def __post_init__(self) -> None:
        assert len(self.holders) >= self.positions

    @property
    def positions(self) -> int:
        """Workers needed."""
        return len(self.heirs) * self.shape.workers


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMapping:
    """The outcome: worker ids by pipeline and rank."""

    pipelines: tuple[tuple[str, ...], ...]
    bytes_needed: int
    """By all positions together."""
    bytes_kept: int
    """That lie where they are needed."""

    @property
    def bytes_moved(self) -> int:
        """What must come over the network or from disk."""
        return self.bytes_needed - self.bytes_kept


def map_flat(task: MappingTask) -> DeviceMapping:
    """Return the mapping that moves fewest bytes, whatever the nodes."""
    kept = bytes_kept(task)
    workers, positions = linear_sum_assignment(kept, maximize=True)
    chosen = np.empty(task.positions, dtype=np.intp)
    chosen[positions] = workers
    return _mapping(task, kept, chosen)


def map_two_step(task: MappingTask) -> DeviceMapping:
    """Return the best mapping that keeps adjacent shards of a stage together on a node.

    A group has as many workers as shards of one stage fit a node. Where whole groups are too few,
    what is left over on several nodes makes groups too, as nothing better exists.
    """
    kept = bytes_kept(task)
    width = _group_width(task)
    groups = _groups(task, width=width, count=task.positions // width)
    chosen = np.empty(task.positions, dtype=np.intp)
    slots = np.arange(task.positions).reshape(-1, width)
    weights, orders = _inside(kept, groups, slots)
    group_indices, slot_indices = linear_sum_assignment(weights, maximize=True)
    for group, slot in zip(group_indices, slot_indices, strict=True):
        chosen[slots[slot]] = groups[group][orders[group, slot]]
    return _mapping(task, kept, _refined(task, kept, chosen))


def map_in_order(task: MappingTask) -> DeviceMapping:
    """Return the mapping that takes the workers as they come: what is compared with."""
    return _mapping(task, bytes_kept(task), np.arange(task.positions))


def bytes_kept(task: MappingTask) -> Bytes:
    """Return, for each worker and position, the bytes held by the one and needed by the other."""
    held = _held_spans(task)
    needed = _needed_spans(task)
    layers = _overlap(held.layer_start, held.layer_stop, needed.layer_start, needed.layer_stop)
    shares = _overlap(held.share_start, held.share_stop, needed.share_start, needed.share_stop)
    size = task.size
    whole = (
        layers * size.layer_bytes
        + np.logical_and.outer(held.is_first, needed.is_first) * float(size.embedding_bytes)
        + np.logical_and.outer(held.is_last, needed.is_last) * float(size.head_bytes)
    )
    weights = np.rint(whole * shares)
    kv_shares = _overlap(held.kv_start, held.kv_stop, needed.kv_start, needed.kv_stop)
    kv_per_token = layers * kv_shares * size.kv_bytes_per_token_layer
    pipeline_tokens = _tokens_inherited(task)[held.replica]
    blocks = [
        weights + np.rint(kv_per_token * tokens[:, np.newaxis]) for tokens in pipeline_tokens.T
    ]
    return np.concatenate(blocks, axis=1)


def bytes_needed(task: MappingTask) -> int:
    """Return the bytes that all positions need together."""
    needed, size = _needed_spans(task), task.size
    layers = needed.layer_stop - needed.layer_start
    shares = needed.share_stop - needed.share_start
    whole = (
        layers * size.layer_bytes
        + needed.is_first * float(size.embedding_bytes)
        + needed.is_last * float(size.head_bytes)
    )
    weights = float(np.rint(whole * shares).sum()) * len(task.heirs)
    kv_per_token = layers * (needed.kv_stop - needed.kv_start) * size.kv_bytes_per_token_layer
    tokens = _tokens_inherited(task)[:-1].sum(axis=0)
    kv = sum(float(np.rint(kv_per_token * count).sum()) for count in tokens)
    return int(weights + kv)


# ------------------------------------------------------------------ what is held and needed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spans:
    """Positions as intervals of layers, of weights and of KV heads; one entry each."""

    layer_start: Bytes
    layer_stop: Bytes
    share_start: Bytes
    share_stop: Bytes
    kv_start: Bytes
    kv_stop: Bytes
    is_first: npt.NDArray[np.bool_]
    is_last: npt.NDArray[np.bool_]
    replica: Indices


def _needed_spans(task: MappingTask) -> _Spans:
    """The positions of one pipeline, by rank; all pipelines are alike."""
    shape = task.shape
    return _spans(
        task.size,
        [
            HeldPosition(replica_id="", shape=shape, stage=stage, shard=shard)
            for stage in range(shape.stages)
            for shard in range(shape.shards)
        ],
        {},
    )


def _held_spans(task: MappingTask) -> _Spans:
    replicas = {replica_id: index for index, replica_id in enumerate(sorted(task.kv_tokens))}
    return _spans(task.size, [holder.held for holder in task.holders], replicas)


def _spans(
    size: ModelBytes, positions: Sequence[HeldPosition | None], replicas: Mapping[str, int]
) -> _Spans:
    rows = [_span(size, position) for position in positions]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 8).T
    return _Spans(
        layer_start=columns[0],
        layer_stop=columns[1],
        share_start=columns[2],
        share_stop=columns[3],
        kv_start=columns[4],
        kv_stop=columns[5],
        is_first=columns[6] > 0,
        is_last=columns[7] > 0,
        replica=np.array(
            [NO_REPLICA if p is None else replicas.get(p.replica_id, NO_REPLICA) for p in positions]
        ),
    )


def _span(size: ModelBytes, position: HeldPosition | None) -> tuple[float, ...]:
    if position is None:
        return (0.0,) * 8
    shape = position.shape
    layers = layer_range(layers=size.layers, stages=shape.stages, stage=position.stage)
    kv_start, kv_stop = _kv_interval(size, shards=shape.shards, shard=position.shard)
    return (
        layers.start,
        layers.stop,
        position.shard / shape.shards,
        (position.shard + 1) / shape.shards,
        kv_start,
        kv_stop,
        position.stage == 0,
        position.stage == shape.stages - 1,
    )


def _kv_interval(size: ModelBytes, *, shards: int, shard: int) -> tuple[float, float]:
    """The part of the KV heads that a shard holds: whole heads, shared where they are fewer."""
    if shards <= size.kv_heads:
        return shard / shards, (shard + 1) / shards
    head = shard * size.kv_heads // shards
    return head / size.kv_heads, (head + 1) / size.kv_heads


def _overlap(start: Bytes, stop: Bytes, other_start: Bytes, other_stop: Bytes) -> Bytes:
    starts = np.maximum(start[:, np.newaxis], other_start)
    lengths: Bytes = np.maximum(np.minimum(stop[:, np.newaxis], other_stop) - starts, 0.0)
    return lengths


def _tokens_inherited(task: MappingTask) -> Bytes:
    """Tokens by old replica and pipeline; a last row of zeros stands for no replica at all."""
    heirs = share_of(task.heirs)
    replicas = {replica_id: index for index, replica_id in enumerate(sorted(task.kv_tokens))}
    tokens = np.zeros((len(replicas) + 1, len(task.heirs)))
    for pipeline, replica_ids in enumerate(task.heirs):
        for replica_id in replica_ids:
            if replica_id in replicas:
                share = task.kv_tokens[replica_id] // heirs[replica_id]
                tokens[replicas[replica_id], pipeline] = share
    return tokens


# ------------------------------------------------------------------ the two steps


def _group_width(task: MappingTask) -> int:
    """The most adjacent shards that fit the node with most workers and divide the stage."""
    counts: dict[str, int] = {}
    for holder in task.holders:
        counts[holder.node_id] = counts.get(holder.node_id, 0) + 1
    largest = max(counts.values())
    return max(
        width for width in range(1, task.shape.shards + 1)
        if task.shape.shards % width == 0 and width <= largest
    )  # fmt: skip


def _groups(task: MappingTask, *, width: int, count: int) -> Indices:
    """Cut each node's workers into groups, those of one old stage together; then the leftovers."""
    by_node: dict[str, list[int]] = {}
    for index, holder in enumerate(task.holders):
        by_node.setdefault(holder.node_id, []).append(index)
    groups: list[list[int]] = []
    left: list[int] = []
    for node_id in sorted(by_node):
        indices = sorted(by_node[node_id], key=lambda index: _place_in_group(task.holders[index]))
        whole = len(indices) // width * width
        groups += [indices[start : start + width] for start in range(0, whole, width)]
        left += indices[whole:]
    missing = max(0, count - len(groups))
    groups += [left[start : start + width] for start in range(0, missing * width, width)]
    return np.array(groups, dtype=np.intp)


def _place_in_group(holder: Holder) -> tuple[bool, str, int, int, str]:
    held = holder.held
    if held is None:
        return (True, "", 0, 0, holder.worker_id)
    return (False, held.replica_id, held.stage, held.shard, holder.worker_id)


def _inside(kept: Bytes, groups: Indices, slots: Indices) -> tuple[Bytes, Indices]:
    """Match each group with each slot; equal weights, of which there are many, are matched once."""
    width = groups.shape[1]
    blocks = kept[groups[:, np.newaxis, :, np.newaxis], slots[np.newaxis, :, np.newaxis, :]]
    flat = np.ascontiguousarray(blocks.reshape(-1, width * width))
    # A dictionary of the rows' bytes: np.unique sorts them, which takes most of a plan's time.
    first_seen: dict[bytes, int] = {}
    indices = [first_seen.setdefault(row.tobytes(), len(first_seen)) for row in flat]
    best = np.empty(len(first_seen))
    order = np.empty((len(first_seen), width), dtype=np.intp)
    for index, row in enumerate(first_seen):
        block = np.frombuffer(row).reshape(width, width)
        rows, columns = linear_sum_assignment(block, maximize=True)
        order[index, columns] = rows
        best[index] = block[rows, columns].sum()
    by_pair = np.array(indices, dtype=np.intp).reshape(len(groups), len(slots))
    return best[by_pair], order[by_pair]


def _refined(task: MappingTask, kept: Bytes, chosen: Indices) -> Indices:
    """Match the workers of each node, idle ones too, with the positions that the node was given."""
    node_of = np.array([holder.node_id for holder in task.holders])
    refined = chosen.copy()
    for node_id in np.unique(node_of[chosen]):
        workers = np.flatnonzero(node_of == node_id)
        positions = np.flatnonzero(node_of[chosen] == node_id)
        rows, columns = linear_sum_assignment(kept[np.ix_(workers, positions)], maximize=True)
        refined[positions[columns]] = workers[rows]
    return refined


def _mapping(task: MappingTask, kept: Bytes, chosen: Indices) -> DeviceMapping:
    worker_ids = [task.holders[index].worker_id for index in chosen]
    per_pipeline = task.shape.workers
    return DeviceMapping(
        pipelines=tuple(
            tuple(worker_ids[start : start + per_pipeline])
            for start in range(0, len(worker_ids), per_pipeline)
        ),
        bytes_needed=bytes_needed(task),
        bytes_kept=int(kept[chosen, np.arange(task.positions)].sum()),
    )

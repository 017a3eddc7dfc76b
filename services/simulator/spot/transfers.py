"""How many bytes cross which link, and how long that takes.

A position is a box of layers x shares of every layer. What a worker lacks is cut along the edges of
all boxes that hold weights now; each piece comes from a holder on the same node if there is one,
else from the node that has sent least so far, else from disk. Time is that of the busiest link of
each kind, one kind after the other: the artifact's T_mig without its constant for the group.
Embedding and head are spread evenly over the layers.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise, product
from typing import Final

from libs.kernel.units import NS_PER_S
from libs.policy.model_profile import ModelBytes
from libs.policy.shapes import ReplicaShape, layer_range
from services.simulator.spot.hardware import Hardware

SHAPES_REMEMBERED: Final = 1024
"""Pairs of shapes between which KV went: those of a model are hundreds, a fleet's a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A position on a worker of a node."""

    worker_id: str
    node_id: str
    shape: ReplicaShape
    stage: int
    shard: int


@dataclass(frozen=True, slots=True)
class Box:
    """Layers from..to and shares from..to, in parts of a layer's whole."""

    layer_start: int
    layer_stop: int
    share_start: float
    share_stop: float

    def holds(self, other: "Box") -> bool:
        """Whether all of the other lies in this one."""
        return (
            self.layer_start <= other.layer_start
            and other.layer_stop <= self.layer_stop
            and self.share_start <= other.share_start
            and other.share_stop <= self.share_stop
        )

    @property
    def layers(self) -> float:
        """How many whole layers it comes to."""
        return (self.layer_stop - self.layer_start) * (self.share_stop - self.share_start)


@dataclass(slots=True, kw_only=True)
class Traffic:
    """Bytes by node, collected while routes are chosen."""

    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    local: dict[str, int] = field(default_factory=dict)
    from_disk: dict[str, int] = field(default_factory=dict)

    def carry(self, *, source_node: str, target_node: str, size_bytes: int) -> None:
        """Add bytes from a node to another, or within one."""
        if source_node == target_node:
            _add(self.local, target_node, size_bytes)
        else:
            _add(self.sent, source_node, size_bytes)
            _add(self.received, target_node, size_bytes)

    def load(self, *, node: str, size_bytes: int) -> None:
        """Add bytes from the disk of a node."""
        _add(self.from_disk, node, size_bytes)

    def duration_ns(self, hardware: Hardware) -> int:
        """Return how long the busiest of each kind takes, one kind after the other."""
        network = max([0, *self.sent.values(), *self.received.values()])
        return (
            _time_ns(network, hardware.network_bytes_per_s)
            + _time_ns(max([0, *self.local.values()]), hardware.local_bytes_per_s)
            + _time_ns(max([0, *self.from_disk.values()]), hardware.disk_bytes_per_s)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBytes:
    """What one worker's weights came from."""

    planned: int = 0
    from_peers: int = 0
    from_disk: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRoutes:
    """From one replica to another: how many workers send so many layers from node to node."""

    shares: Mapping[tuple[str, str, float], int]
    token_layer_bytes: int

    def traffic(self, tokens: int) -> Traffic:
        """Return what so many tokens come to."""
        traffic = Traffic()
        token_bytes = self.token_layer_bytes * tokens
        for (source_node, target_node, layers), workers in self.shares.items():
            traffic.carry(
                source_node=source_node,
                target_node=target_node,
                size_bytes=workers * math.ceil(layers * token_bytes),
            )
        return traffic


def box_of(size: ModelBytes, placed: Placed) -> Box:
    """Return the part of the model that a position needs."""
    return _box(size.layers, placed.shape, placed.stage, placed.shard)


def weight_traffic(
    size: ModelBytes, *, holders: Sequence[Placed], targets: Sequence[Placed]
) -> tuple[Traffic, dict[str, LoadedBytes]]:
    """Choose where every missing piece of the targets' weights comes from."""
    traffic = Traffic()
    boxes = [(holder, box_of(size, holder)) for holder in holders]
    loaded = {target.worker_id: _route(size, boxes, target, traffic) for target in targets}
    return traffic, loaded


def disk_traffic(
    size: ModelBytes, targets: Sequence[Placed]
) -> tuple[Traffic, dict[str, LoadedBytes]]:
    """Load everything from disk, what is there already included: a restart."""
    return weight_traffic(size, holders=(), targets=targets)


def kv_traffic(
    size: ModelBytes, *, source: Sequence[Placed], target: Sequence[Placed], tokens: int
) -> Traffic:
    """Send the KV of so many tokens from one replica to another."""
    return kv_routes(size, source=source, target=target).traffic(tokens)


def kv_routes(
    size: ModelBytes, *, source: Sequence[Placed], target: Sequence[Placed]
) -> "KvRoutes":
    """Return which layers go from where to where, whatever the number of tokens."""
    holders = {(holder.stage, holder.shard): holder for holder in source}
    heirs = {(heir.stage, heir.shard): heir for heir in target}
    shares: Counter[tuple[str, str, float]] = Counter()
    for held, needed, layers in _overlaps(size.layers, source[0].shape, target[0].shape):
        if held in holders and needed in heirs:
            holder, heir = holders[held], heirs[needed]
            if holder.worker_id != heir.worker_id:
                shares[holder.node_id, heir.node_id, layers] += 1
    return KvRoutes(shares=shares, token_layer_bytes=size.kv_bytes_per_token_layer)


@lru_cache(maxsize=SHAPES_REMEMBERED)
def _overlaps(
    layers: int, source: ReplicaShape, target: ReplicaShape
) -> tuple[tuple[tuple[int, int], tuple[int, int], float], ...]:
    """Return which (stage, shard) of the source holds how much of which one of the target."""
    held = {position: _box(layers, source, *position) for position in _positions(source)}
    needed = {position: _box(layers, target, *position) for position in _positions(target)}
    pairs = ((one, other, _overlap(held[one], needed[other])) for one in held for other in needed)
    return tuple(pair for pair in pairs if pair[2] > 0)


def _positions(shape: ReplicaShape) -> Iterable[tuple[int, int]]:
    return product(range(shape.stages), range(shape.shards))


def _box(layers: int, shape: ReplicaShape, stage: int, shard: int) -> Box:
    own = layer_range(layers=layers, stages=shape.stages, stage=stage)
    return Box(own.start, own.stop, shard / shape.shards, (shard + 1) / shape.shards)


def _route(
    size: ModelBytes, boxes: list[tuple[Placed, Box]], target: Placed, traffic: Traffic
) -> LoadedBytes:
    needed = box_of(size, target)
    layer_bytes = size.weight_bytes / size.layers
    kept = from_peers = from_disk = 0
    for piece in _pieces(needed, [box for _, box in boxes]):
        piece_bytes = math.ceil(piece.layers * layer_bytes)
        holding = [holder for holder, box in boxes if box.holds(piece)]
        if any(holder.worker_id == target.worker_id for holder in holding):
            kept += piece_bytes
        elif holding:
            nearest = min(
                holding,
                key=lambda h: (
                    h.node_id != target.node_id, traffic.sent.get(h.node_id, 0), h.worker_id
                ),
            )  # fmt: skip
            traffic.carry(
                source_node=nearest.node_id, target_node=target.node_id, size_bytes=piece_bytes
            )
            from_peers += piece_bytes
        else:
            traffic.load(node=target.node_id, size_bytes=piece_bytes)
            from_disk += piece_bytes
    return LoadedBytes(
        planned=kept + from_peers + from_disk,
        from_peers=from_peers,
        from_disk=from_disk,
        kept=kept,
    )


def _pieces(needed: Box, boxes: Sequence[Box]) -> list[Box]:
    """Cut what is needed along the edges of all boxes."""
    layers = {needed.layer_start, needed.layer_stop}
    shares = {needed.share_start, needed.share_stop}
    for box in boxes:
        layers |= {
            edge
            for edge in (box.layer_start, box.layer_stop)
            if needed.layer_start < edge < needed.layer_stop
        }
        shares |= {
            edge
            for edge in (box.share_start, box.share_stop)
            if needed.share_start < edge < needed.share_stop
        }
    return [
        Box(layer_start, layer_stop, share_start, share_stop)
        for layer_start, layer_stop in pairwise(sorted(layers))
        for share_start, share_stop in pairwise(sorted(shares))
    ]


def _overlap(one: Box, other: Box) -> float:
    layers = min(one.layer_stop, other.layer_stop) - max(one.layer_start, other.layer_start)
    shares = min(one.share_stop, other.share_stop) - max(one.share_start, other.share_start)
    return max(0, layers) * max(0.0, shares)


def _time_ns(size_bytes: int, bytes_per_s: int) -> int:
    return size_bytes * NS_PER_S // bytes_per_s


def _add(totals: dict[str, int], name: str, size_bytes: int) -> None:
    totals[name] = totals.get(name, 0) + size_bytes

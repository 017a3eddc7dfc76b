"""Algorithm 2 of SpotServe: in which order weights move, so that no worker runs out of memory.

KV goes first: it is what a sudden end would cost. Then the layers follow in an order that keeps
every worker below `bytes_max` where any order can, and each stage starts as soon as its own layers
are there, while later ones still move.

    for each layer, first to last: take it if no worker then exceeds bytes_max, else set it aside
    while layers are set aside:    take the one after which the fullest worker holds least

A worker holds, after a layer has moved, its new part of it and no longer its old part.
Source: SpotServe section 3.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from libs.policy.device_mapping import HeldPosition
from libs.policy.model_profile import ModelBytes
from libs.policy.shapes import layer_range

LayerBytes: TypeAlias = npt.NDArray[np.float64]
"""By layer and worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedPosition:
    """What one worker holds before and after; None: nothing."""

    before: HeldPosition | None
    after: HeldPosition | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOrder:
    """The order in which layers move, and what it costs in memory."""

    layers: tuple[int, ...]
    bytes_peak: int
    """The most that any worker holds beyond what it held before, between two layers."""
    is_within_bound: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveKv:
    """Move the KV of all inherited sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveLayer:
    """Move the weights of this layer to whoever needs them."""

    layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartStage:
    """This stage of every pipeline has all its layers and may begin."""

    stage: int


MigrationStep: TypeAlias = MoveKv | MoveLayer | StartStage


def order_layers(growth: LayerBytes, *, bytes_max: float) -> LayerOrder:
    """Order layers by Algorithm 2.

    `growth[layer, worker]` is what the worker's memory grows by when the layer has moved; it is
    negative for one that lets go of more than it takes. Ties go to the lower layer.
    """
    layers, workers = growth.shape
    used = np.zeros(workers)
    peak = 0.0
    order: list[int] = []
    aside: list[int] = []
    for layer in range(layers):
        after = used + growth[layer]
        if workers and after.max() > bytes_max:
            aside.append(layer)
            continue
        order.append(layer)
        used = after
        peak = max(peak, float(used.max(initial=0.0)))
    while aside:
        fullest = (used + growth[aside]).max(axis=1)
        layer = aside.pop(int(fullest.argmin()))
        order.append(layer)
        used = used + growth[layer]
        peak = max(peak, float(used.max()))
    return LayerOrder(
        layers=tuple(order), bytes_peak=round(peak), is_within_bound=peak <= bytes_max
    )


def layer_growth(size: ModelBytes, workers: Sequence[ReplacedPosition]) -> LayerBytes:
    """Return the bytes that each layer's move adds to each worker."""
    before = np.array([_layer_bytes(size, worker.before) for worker in workers]).reshape(
        len(workers), size.layers
    )
    after = np.array([_layer_bytes(size, worker.after) for worker in workers]).reshape(
        len(workers), size.layers
    )
    growth: LayerBytes = (after - before).T
    return growth


def migration_steps(order: Sequence[int], *, layers: int, stages: int) -> tuple[MigrationStep, ...]:
    """Return the whole plan: KV, then layers, and each stage as soon as its last layer is there."""
    stage_of = {
        layer: stage
        for stage in range(stages)
        for layer in layer_range(layers=layers, stages=stages, stage=stage)
    }
    missing = [len(layer_range(layers=layers, stages=stages, stage=s)) for s in range(stages)]
    steps: list[MigrationStep] = [MoveKv()]
    for layer in order:
        steps.append(MoveLayer(layer=layer))
        stage = stage_of[layer]
        missing[stage] -= 1
        if missing[stage] == 0:
            steps.append(StartStage(stage=stage))
    return tuple(steps)


def _layer_bytes(size: ModelBytes, position: HeldPosition | None) -> list[float]:
    held = [0.0] * size.layers
    if position is None:
        return held
    shape = position.shape
    for layer in layer_range(layers=size.layers, stages=shape.stages, stage=position.stage):
        held[layer] = size.layer_bytes / shape.shards
    return held

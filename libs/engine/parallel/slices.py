"""Which slices of which tensors a position holds; pure."""

from collections.abc import Mapping
from itertools import chain

from libs.engine.model_config import ModelConfig
from libs.engine.parallel.position import Position
from libs.engine.tensor_rows import (
    Cut,
    TensorRow,
    embedding_row,
    final_norm_rows,
    head_row,
    layer_rows,
    norm_tensors,
    positions_row,
)
from libs.transfer.layout import TensorSlice

Slices = Mapping[int | None, tuple[TensorSlice, ...]]
"""By layer; None: embeddings, final norm and head."""


def slices_of(config: ModelConfig, position: Position, *, element_bytes: int) -> Slices:
    """Return all that a position holds, in the order of use.

    The embedding stands at the first stage, final norm and head at the last; a tied head is the
    same slice of the same tensor.
    """
    rows: dict[int | None, list[TensorRow]] = {None: _edge_rows(config, position)}
    for layer in position.layers:
        rows[layer] = list(layer_rows(config, layer=layer))
    return {
        layer: tuple(
            slice_
            for row in layer_tensors
            if (slice_ := slice_of(row, config, position, element_bytes=element_bytes)) is not None
        )
        for layer, layer_tensors in rows.items()
    }


def all_slices_of(
    config: ModelConfig, position: Position, *, element_bytes: int
) -> tuple[TensorSlice, ...]:
    """Return the same as `slices_of`, in one row."""
    return tuple(chain(*slices_of(config, position, element_bytes=element_bytes).values()))


def slice_of(
    row: TensorRow, config: ModelConfig, position: Position, *, element_bytes: int
) -> TensorSlice | None:
    """Return the part of one tensor that the position's shard holds, None if it holds none."""
    units = _units(row, config, position)
    if not units:
        return None
    return TensorSlice(
        tensor=row.name,
        start=units.start,
        stop=units.stop,
        bytes_per_unit=row.unit_elements * element_bytes,
    )


def _edge_rows(config: ModelConfig, position: Position) -> list[TensorRow]:
    rows: list[TensorRow] = []
    if position.is_first_stage:
        rows.append(embedding_row(config))
        positions = positions_row(config)
        if positions is not None:
            rows.append(positions)
    if position.is_last_stage:
        rows += norm_tensors(final_norm_rows(config))
        if head_row(config) not in rows:
            rows.append(head_row(config))
    return rows


def _units(row: TensorRow, config: ModelConfig, position: Position) -> range:
    match row.cut:
        case Cut.WHOLE:
            return range(row.units)
        case Cut.FIRST_SHARD:
            return range(row.units if position.shard == 0 else 0)
        case Cut.HEADS:
            return _head_units(position.head_range(config), config.head_size)
        case Cut.KV_HEADS:
            return _head_units(position.kv_head_range(config), config.head_size)
        case Cut.EVEN:
            return position.share(row.units)


def _head_units(heads: range, head_size: int) -> range:
    return range(heads.start * head_size, heads.stop * head_size)

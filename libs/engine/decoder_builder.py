"""Builds the decoder of one position from the weights in a store."""

from pathlib import Path

import torch

from libs.engine.checkpoint import Checkpoint
from libs.engine.decoder import Decoder, DecoderLayer, Embedding, Head, Norm
from libs.engine.linear import Layout, LayoutChooser, Linear
from libs.engine.model_config import ModelConfig
from libs.engine.parallel.position import Position, position_at
from libs.engine.parallel.slices import slice_of, slices_of
from libs.engine.parallel.weight_store import WeightStore
from libs.engine.tensor_rows import (
    LinearRows,
    NormRows,
    TensorRow,
    embedding_row,
    final_norm_rows,
    head_row,
    layer_rows,
    positions_row,
)
from libs.transfer.layout import TensorSlice


def load_decoder(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    row_copy_bytes_max: int,
    is_packed: bool = True,
) -> Decoder:
    """Load a whole model for an engine without peers: nothing but the decoder keeps its weights.

    Raises: ModelLoadError naming the file and tensor that is missing or wrong.
    """
    position = position_at(config, stages=1, shards=1, stage=0, shard=0)
    store = WeightStore(config, dtype=dtype, device=device)
    builder = DecoderBuilder(
        store, position, row_copy_bytes_max=row_copy_bytes_max, is_packed=is_packed
    )
    layers = []
    slices = slices_of(config, position, element_bytes=dtype.itemsize)
    with Checkpoint(folder) as checkpoint:
        for layer in position.layers:
            store.load(slices[layer], checkpoint)
            layers.append(builder.layer(layer))
            store.keep_only(())
        store.load(slices[None], checkpoint)
    return builder.decoder(tuple(layers))


def build_decoder(
    store: WeightStore, position: Position, *, row_copy_bytes_max: int, is_packed: bool = True
) -> Decoder:
    """Build the decoder of a position whose slices are all in the store, which keeps them.

    Unpacked, the decoder uses the store's own memory; packed, which is faster on a CPU, it makes a
    copy of its linears.
    """
    builder = DecoderBuilder(
        store, position, row_copy_bytes_max=row_copy_bytes_max, is_packed=is_packed
    )
    return builder.decoder(tuple(builder.layer(layer) for layer in position.layers))


class DecoderBuilder:
    """Takes the parts of a decoder out of a store."""

    def __init__(
        self,
        store: WeightStore,
        position: Position,
        *,
        row_copy_bytes_max: int,
        is_packed: bool = True,
    ) -> None:
        self._store = store
        self._position = position
        self._is_packed = is_packed
        self._layouts = LayoutChooser(row_copy_bytes_max=row_copy_bytes_max)

    def decoder(self, layers: tuple[DecoderLayer, ...]) -> Decoder:
        """Return the decoder with these layers; embedding and head are taken now."""
        return Decoder(
            self._store.config,
            self._position,
            layers=layers,
            embedding=self._embedding() if self._position.is_first_stage else None,
            head=self._head() if self._position.is_last_stage else None,
            dtype=self._store.dtype,
            device=self._store.device,
        )

    def layer(self, layer: int) -> DecoderLayer:
        """Return one layer."""
        rows = layer_rows(self._store.config, layer=layer)
        head_norms = None
        if rows.head_norms is not None:
            head_norms = (self._norm(rows.head_norms[0]), self._norm(rows.head_norms[1]))
        return DecoderLayer(
            attention_norm=self._norm(rows.attention_norm),
            qkv=self._linear(rows.qkv),
            head_norms=head_norms,
            output=self._linear(rows.output),
            mlp_norm=self._norm(rows.mlp_norm),
            up=self._linear(rows.up),
            down=self._linear(rows.down),
        )

    def _embedding(self) -> Embedding:
        config = self._store.config
        row, positions = embedding_row(config), positions_row(config)
        return Embedding(
            tokens_VC=self._exact((row,)),
            first_token_id=self._position.share(row.units).start,
            positions_PC=None if positions is None else self._exact((positions,)),
        )

    def _head(self) -> Head:
        rows = LinearRows(weights=(head_row(self._store.config),), biases=())
        return Head(norm=self._norm(final_norm_rows(self._store.config)), linear=self._linear(rows))

    def _norm(self, rows: NormRows) -> Norm:
        return Norm(
            weight_C=self._exact((rows.weight,)),
            bias_C=None if rows.bias is None else self._exact((rows.bias,)),
            epsilon=self._store.config.norm_epsilon,
        )

    def _linear(self, rows: LinearRows) -> Linear:
        slices = self._slices(rows.weights)
        layout = Layout.PLAIN
        if self._is_packed:
            elements = sum(slice_.bytes for slice_ in slices) // self._store.element_bytes
            layout = self._layouts.choose(elements, self._store.dtype, self._store.device)
        is_plain = layout is Layout.PLAIN
        weight = self._store.exact(slices) if is_plain else self._store.joined(slices)
        biases = self._slices(rows.biases)
        return Linear(
            weight if rows.weights[0].unit_axis == 0 else weight.t(),
            self._store.exact(biases) if biases else None,
            layout=layout,
        )

    def _exact(self, rows: tuple[TensorRow, ...]) -> torch.Tensor:
        return self._store.exact(self._slices(rows))

    def _slices(self, rows: tuple[TensorRow, ...]) -> tuple[TensorSlice, ...]:
        """Return the position's part of each tensor; of a bias that another shard adds, none."""
        config, element_bytes = self._store.config, self._store.element_bytes
        parts = (slice_of(row, config, self._position, element_bytes=element_bytes) for row in rows)
        return tuple(part for part in parts if part is not None)

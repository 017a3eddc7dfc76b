"""Which tensors a model consists of, and how shards cut them; pure.

These are the *canonical* tensors, in which weights are held, moved and counted: those of the
checkpoint, save that fused ones come apart (GPT-NeoX stores [query, key, value] of each head in
turn). Whatever the shape of a replica, each of its positions holds a range of units of each tensor;
so going from any shape to any other moves ranges.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Literal

from libs.engine.model_config import ModelConfig

QKV_PARTS = ("query", "key", "value")


class Cut(StrEnum):
    """Which units of a tensor a shard holds."""

    WHOLE = "whole"
    """All of them, every shard."""
    FIRST_SHARD = "first_shard"
    """All of them, shard 0 alone: added to partial sums once."""
    HEADS = "heads"
    """Those of its query heads."""
    KV_HEADS = "kv_heads"
    """Those of its KV heads."""
    EVEN = "even"
    """Its even share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interleaved:
    """One of the three parts of a tensor that holds [query, key, value] of each head in turn."""

    part: int
    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """One canonical tensor: its name, its whole shape, and what it is cut into."""

    name: str
    shape: tuple[int, ...]
    cut: Cut = Cut.WHOLE
    unit_axis: Literal[0, 1] = 0
    """0: a unit is a row (of outputs, of the vocabulary); 1: a column, behind which partial sums
    are added up."""
    stored_as: tuple[str, ...] = ()
    """The checkpoint's name for it: the first of these that it has; empty: `name`."""
    interleaved: Interleaved | None = None

    @property
    def units(self) -> int:
        """How many units the whole tensor has."""
        return self.shape[self.unit_axis]

    @property
    def unit_elements(self) -> int:
        """Elements of one unit."""
        return prod(self.shape) // self.units


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRows:
    """One linear of the decoder: tensors fused one below another."""

    weights: tuple[TensorRow, ...]
    biases: tuple[TensorRow, ...]
    """One for each weight, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormRows:
    """The tensors of one norm."""

    weight: TensorRow
    bias: TensorRow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRows:
    """The tensors of one decoder layer."""

    attention_norm: NormRows
    qkv: LinearRows
    head_norms: tuple[NormRows, NormRows] | None
    output: LinearRows
    mlp_norm: NormRows
    up: LinearRows
    """Gate and up, one below the other, where the MLP is gated."""
    down: LinearRows

    def __iter__(self) -> Iterator[TensorRow]:
        """Yield every tensor, in the order of use."""
        norms = (self.attention_norm, *(self.head_norms or ()), self.mlp_norm)
        for norm in norms:
            yield from norm_tensors(norm)
        for linear in (self.qkv, self.output, self.up, self.down):
            yield from (*linear.weights, *linear.biases)


def tensor_rows(config: ModelConfig) -> Iterator[TensorRow]:
    """Yield every tensor of the model once."""
    yield embedding_row(config)
    positions = positions_row(config)
    if positions is not None:
        yield positions
    for layer in range(config.layers):
        yield from layer_rows(config, layer=layer)
    yield from norm_tensors(final_norm_rows(config))
    if not config.is_embedding_tied:
        yield head_row(config)


def norm_tensors(norm: NormRows) -> tuple[TensorRow, ...]:
    """Return the norm's weight and, if it has one, its bias."""
    return (norm.weight,) if norm.bias is None else (norm.weight, norm.bias)


def embedding_row(config: ModelConfig) -> TensorRow:
    """Name the token embedding."""
    shape = (config.vocabulary_size, config.hidden_size)
    return TensorRow(name=config.family.names.embedding, shape=shape, cut=Cut.EVEN)


def positions_row(config: ModelConfig) -> TensorRow | None:
    """Name the learned embedding of positions, if the family has one."""
    name = config.family.names.positions
    if name is None:
        return None
    rows = config.context_tokens_max + config.family.position_offset
    return TensorRow(name=name, shape=(rows, config.hidden_size))


def final_norm_rows(config: ModelConfig) -> NormRows:
    """Name the norm before the head."""
    return _norm_rows(config, config.family.names.final_norm, size=config.hidden_size)


def head_row(config: ModelConfig) -> TensorRow:
    """Name the weight that makes logits; a tied one is the embedding."""
    embedding = embedding_row(config)
    if config.is_embedding_tied:
        return embedding
    names = config.family.names.heads
    return TensorRow(name=names[0], shape=embedding.shape, cut=Cut.EVEN, stored_as=names)


def layer_rows(config: ModelConfig, *, layer: int) -> LayerRows:
    """Name the tensors of one layer."""
    names = config.family.names
    prefix = names.layer_prefix.format(layer)
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query = config.heads * config.head_size

    def norm(name: str, size: int = hidden) -> NormRows:
        return _norm_rows(config, prefix + name, size=size)

    def by_columns(name: str, *, columns: int, cut: Cut, has_bias: bool) -> LinearRows:
        weight = TensorRow(
            name=f"{prefix}{name}.weight", shape=(hidden, columns), cut=cut, unit_axis=1
        )
        bias = TensorRow(name=f"{prefix}{name}.bias", shape=(hidden,), cut=Cut.FIRST_SHARD)
        return LinearRows(weights=(weight,), biases=(bias,) if has_bias else ())

    up = [
        TensorRow(name=f"{prefix}{name}.weight", shape=(intermediate, hidden), cut=Cut.EVEN)
        for name in names.up
    ]
    head_norms = None
    if names.head_norms is not None:
        head_norms = (
            norm(names.head_norms[0], config.head_size),
            norm(names.head_norms[1], config.head_size),
        )
    return LayerRows(
        attention_norm=norm(names.attention_norm),
        qkv=_qkv_rows(config, prefix),
        head_norms=head_norms,
        output=by_columns(
            names.output, columns=query, cut=Cut.HEADS, has_bias=config.has_output_bias
        ),
        mlp_norm=norm(names.mlp_norm),
        up=LinearRows(
            weights=tuple(up),
            biases=tuple(map(_bias_of, up)) if config.has_mlp_bias else (),
        ),
        down=by_columns(
            names.down, columns=intermediate, cut=Cut.EVEN, has_bias=config.has_mlp_bias
        ),
    )


def _qkv_rows(config: ModelConfig, prefix: str) -> LinearRows:
    names = config.family.names.qkv
    is_fused = len(names) == 1
    weights = []
    for part, what in enumerate(QKV_PARTS):
        heads = config.heads if part == 0 else config.kv_heads
        stored = f"{prefix}{names[0 if is_fused else part]}"
        weights.append(
            TensorRow(
                name=f"{stored}.{what}.weight" if is_fused else f"{stored}.weight",
                shape=(heads * config.head_size, config.hidden_size),
                cut=Cut.HEADS if part == 0 else Cut.KV_HEADS,
                stored_as=(f"{stored}.weight",),
                interleaved=Interleaved(part=part, heads=heads) if is_fused else None,
            )
        )
    biases = tuple(map(_bias_of, weights)) if config.has_qkv_bias else ()
    return LinearRows(weights=tuple(weights), biases=biases)


def _bias_of(weight: TensorRow) -> TensorRow:
    """Name the bias of a linear that is cut by rows: it is cut the same way."""
    return TensorRow(
        name=f"{weight.name.removesuffix('weight')}bias",
        shape=weight.shape[:1],
        cut=weight.cut,
        stored_as=tuple(f"{name.removesuffix('weight')}bias" for name in weight.stored_as),
        interleaved=weight.interleaved,
    )


def _norm_rows(config: ModelConfig, name: str, *, size: int) -> NormRows:
    weight = TensorRow(name=f"{name}.weight", shape=(size,))
    bias = TensorRow(name=f"{name}.bias", shape=(size,))
    return NormRows(weight=weight, bias=bias if config.family.is_layer_norm else None)

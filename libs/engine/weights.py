"""Reads a checkpoint's tensors by slice, so that a shard never loads more than it holds."""

import json
from collections.abc import Container
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch
from safetensors import SafetensorError, safe_open

from libs.engine.model_config import ModelConfig, ModelLoadError

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """One tensor of a checkpoint: its name, its whole shape and how tensor parallelism cuts it."""

    name: str
    shape: tuple[int, ...]
    shard_axis: Literal[0, 1] | None
    """0: by output rows (heads, intermediate units, vocabulary); 1: by input columns, partial
    sums to be added up; None: every shard holds all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRows:
    """One linear of the decoder: parts of the checkpoint, fused one below another."""

    weights: tuple[TensorRow, ...]
    biases: tuple[TensorRow, ...]
    """One for each weight, or none."""
    heads_interleaved: int | None = None
    """The checkpoint holds [query, key, value] of each of so many heads in turn."""


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


def embedding_row(config: ModelConfig) -> TensorRow:
    """Name the token embedding."""
    shape = (config.vocabulary_size, config.hidden_size)
    return TensorRow(name=config.family.names.embedding, shape=shape, shard_axis=0)


def positions_row(config: ModelConfig) -> TensorRow | None:
    """Name the learned embedding of positions, if the family has one."""
    name = config.family.names.positions
    if name is None:
        return None
    rows = config.context_tokens_max + config.family.position_offset
    return TensorRow(name=name, shape=(rows, config.hidden_size), shard_axis=None)


def final_norm_rows(config: ModelConfig) -> NormRows:
    """Name the norm before the head."""
    return _norm_rows(config, config.family.names.final_norm, size=config.hidden_size)


def head_rows(config: ModelConfig, *, names_present: Container[str]) -> LinearRows:
    """Name the linear that makes logits; a tied one is the embedding."""
    embedding = embedding_row(config)
    names = config.family.names.heads
    name = next((name for name in names if name in names_present), names[0])
    if config.is_embedding_tied:
        name = embedding.name
    weight = TensorRow(name=name, shape=embedding.shape, shard_axis=0)
    return LinearRows(weights=(weight,), biases=())


def layer_rows(config: ModelConfig, *, layer: int) -> LayerRows:
    """Name the tensors of one layer."""
    names = config.family.names
    prefix = names.layer_prefix.format(layer)
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query, key = config.heads * config.head_size, config.kv_heads * config.head_size

    def norm(name: str, size: int = hidden) -> NormRows:
        return _norm_rows(config, prefix + name, size=size)

    def by_rows(parts: dict[str, int], *, has_bias: bool) -> LinearRows:
        return _linear_rows(prefix, parts, columns=hidden, axis=0, has_bias=has_bias)

    def by_columns(name: str, *, columns: int, has_bias: bool) -> LinearRows:
        return _linear_rows(prefix, {name: hidden}, columns=columns, axis=1, has_bias=has_bias)

    if len(names.qkv) == 1:
        qkv = replace(
            by_rows({names.qkv[0]: 3 * query}, has_bias=config.has_qkv_bias),
            heads_interleaved=config.heads,
        )
    else:
        sizes = dict(zip(names.qkv, (query, key, key), strict=True))
        qkv = by_rows(sizes, has_bias=config.has_qkv_bias)
    head_norms = None
    if names.head_norms is not None:
        head_norms = (
            norm(names.head_norms[0], config.head_size),
            norm(names.head_norms[1], config.head_size),
        )
    return LayerRows(
        attention_norm=norm(names.attention_norm),
        qkv=qkv,
        head_norms=head_norms,
        output=by_columns(names.output, columns=query, has_bias=config.has_output_bias),
        mlp_norm=norm(names.mlp_norm),
        up=by_rows(dict.fromkeys(names.up, intermediate), has_bias=config.has_mlp_bias),
        down=by_columns(names.down, columns=intermediate, has_bias=config.has_mlp_bias),
    )


def _norm_rows(config: ModelConfig, name: str, *, size: int) -> NormRows:
    weight = TensorRow(name=f"{name}.weight", shape=(size,), shard_axis=None)
    bias = TensorRow(name=f"{name}.bias", shape=(size,), shard_axis=None)
    return NormRows(weight=weight, bias=bias if config.family.is_layer_norm else None)


def _linear_rows(
    prefix: str, parts: dict[str, int], *, columns: int, axis: Literal[0, 1], has_bias: bool
) -> LinearRows:
    weights = tuple(
        TensorRow(name=f"{prefix}{name}.weight", shape=(rows, columns), shard_axis=axis)
        for name, rows in parts.items()
    )
    # A bias follows the rows; behind a cut by columns it is added once, by one shard.
    bias_axis: Literal[0] | None = 0 if axis == 0 else None
    biases = tuple(
        TensorRow(name=f"{prefix}{name}.bias", shape=(rows,), shard_axis=bias_axis)
        for name, rows in parts.items()
        if has_bias
    )
    return LinearRows(weights=weights, biases=biases)


class Checkpoint:
    """The safetensors files of one model folder, read by slice; a context that keeps them open."""

    def __init__(self, folder: Path) -> None:
        """Open the files and list the tensors in them.

        Raises: ModelLoadError if the folder holds no readable safetensors.
        """
        self._folder = folder
        self._open_files = ExitStack()
        self._location_by_tensor: dict[str, tuple[Path, safe_open]] = {}
        with ExitStack() as on_error:
            on_error.enter_context(self._open_files)
            for path in _weight_files(folder):
                file = self._open_files.enter_context(_open(path))
                for name in file.keys():  # noqa: SIM118  (a handle of safetensors, not a dict)
                    self._location_by_tensor[name] = (path, file)
            on_error.pop_all()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    @property
    def names(self) -> Container[str]:
        """The tensors that the files hold."""
        return self._location_by_tensor.keys()

    def read(self, row: TensorRow, *, dtype: torch.dtype) -> torch.Tensor:
        """Read a whole tensor."""
        return self.read_slice(row, start=0, stop=row.shape[row.shard_axis or 0], dtype=dtype)

    def read_slice(
        self, row: TensorRow, *, start: int, stop: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Read what lies between start and stop along the row's shard axis (axis 0 if none).

        Raises: ModelLoadError if the tensor is missing or its whole shape is not the row's.
        """
        if row.name not in self._location_by_tensor:
            raise ModelLoadError(f"{self._folder}: tensor {row.name} is in none of the files")
        path, file = self._location_by_tensor[row.name]
        tensor_slice = file.get_slice(row.name)  # type: ignore[no-untyped-call]
        shape = tuple(tensor_slice.get_shape())
        if shape != row.shape:
            raise ModelLoadError(
                f"{path}: tensor {row.name} has shape {shape}, config.json says {row.shape}"
            )
        part: torch.Tensor = (
            tensor_slice[:, start:stop] if row.shard_axis == 1 else tensor_slice[start:stop]
        )
        if not part.is_floating_point() or part.element_size() < 2:
            raise ModelLoadError(f"{path}: tensor {row.name} is {part.dtype}, not a plain float")
        return part.to(dtype)

    def read_fused(
        self,
        rows: tuple[TensorRow, ...],
        *,
        dtype: torch.dtype,
        heads_interleaved: int | None = None,
    ) -> torch.Tensor:
        """Read tensors one below another into one: all queries, all keys, all values."""
        parts = [self.read(row, dtype=dtype) for row in rows]
        fused = parts[0] if len(parts) == 1 else torch.cat(parts)
        if heads_interleaved is None:
            return fused
        by_head = fused.view(heads_interleaved, 3, -1, *fused.shape[1:])
        return by_head.transpose(0, 1).reshape(fused.shape)


def _weight_files(folder: Path) -> list[Path]:
    index_path = folder / INDEX_FILE
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    if index_path.exists():
        return [folder / name for name in _indexed_files(index_path)]
    others = sorted(path.name for path in folder.glob("*.bin"))
    found = f"; {', '.join(others)} cannot be loaded: only safetensors can" if others else ""
    raise ModelLoadError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE}{found}")


def _indexed_files(index_path: Path) -> list[str]:
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{index_path}: not a safetensors index: {error!r}") from None
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise ModelLoadError(f"{index_path}: names files outside the folder: {outside}")
    return names


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ModelLoadError(f"{path}: no such file, though the index names it") from None
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{path}: truncated or not safetensors: {error}") from None

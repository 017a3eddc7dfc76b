"""Reads a checkpoint's tensors by slice, so that a shard never loads more than it holds."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRows:
    """The tensors of one decoder layer."""

    attention_norm: TensorRow
    qkv: LinearRows
    output: LinearRows
    mlp_norm: TensorRow
    gate_up: LinearRows
    down: LinearRows


def embedding_row(config: ModelConfig) -> TensorRow:
    """Name the token embedding."""
    shape = (config.vocabulary_size, config.hidden_size)
    return TensorRow(name="model.embed_tokens.weight", shape=shape, shard_axis=0)


def final_norm_row(config: ModelConfig) -> TensorRow:
    """Name the norm before the head."""
    return TensorRow(name="model.norm.weight", shape=(config.hidden_size,), shard_axis=None)


def head_rows(config: ModelConfig) -> LinearRows:
    """Name the linear that makes logits; a tied one is the embedding."""
    embedding = embedding_row(config)
    name = embedding.name if config.is_embedding_tied else "lm_head.weight"
    weight = TensorRow(name=name, shape=embedding.shape, shard_axis=0)
    return LinearRows(weights=(weight,), biases=())


def layer_rows(config: ModelConfig, *, layer: int) -> LayerRows:
    """Name the tensors of one layer, llama's naming, which qwen2 shares."""
    prefix = f"model.layers.{layer}."
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query, key = config.heads * config.head_size, config.kv_heads * config.head_size

    def norm(name: str) -> TensorRow:
        return TensorRow(name=f"{prefix}{name}.weight", shape=(hidden,), shard_axis=None)

    def fused(
        parts: dict[str, int], *, columns: int, axis: Literal[0, 1], has_bias: bool
    ) -> LinearRows:
        weights = tuple(
            TensorRow(name=f"{prefix}{name}.weight", shape=(rows, columns), shard_axis=axis)
            for name, rows in parts.items()
        )
        # A bias follows the rows; behind a cut by columns it is added once, by one shard.
        biases = tuple(
            TensorRow(
                name=f"{prefix}{name}.bias", shape=(rows,), shard_axis=0 if axis == 0 else None
            )
            for name, rows in parts.items()
            if has_bias
        )
        return LinearRows(weights=weights, biases=biases)

    return LayerRows(
        attention_norm=norm("input_layernorm"),
        qkv=fused(
            {"self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": key},
            columns=hidden,
            axis=0,
            has_bias=config.has_qkv_bias,
        ),
        output=fused(
            {"self_attn.o_proj": hidden}, columns=query, axis=1, has_bias=config.has_output_bias
        ),
        mlp_norm=norm("post_attention_layernorm"),
        gate_up=fused(
            {"mlp.gate_proj": intermediate, "mlp.up_proj": intermediate},
            columns=hidden,
            axis=0,
            has_bias=config.has_mlp_bias,
        ),
        down=fused(
            {"mlp.down_proj": hidden}, columns=intermediate, axis=1, has_bias=config.has_mlp_bias
        ),
    )


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

    def read_fused(self, rows: tuple[TensorRow, ...], *, dtype: torch.dtype) -> torch.Tensor:
        """Read tensors one below another into one."""
        parts = [self.read(row, dtype=dtype) for row in rows]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


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

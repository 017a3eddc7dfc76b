"""Reads a checkpoint's tensors by slice, so that a shard never loads more than it holds."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol

import torch
from safetensors import SafetensorError, safe_open

from libs.engine.model_config import ModelLoadError
from libs.engine.tensor_rows import QKV_PARTS, TensorRow

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"


class StoredTensor(Protocol):
    """A tensor in a safetensors file, of which only what is asked for is read."""

    def __getitem__(self, part: slice | tuple[slice, ...]) -> torch.Tensor:
        """Read a part."""


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

    def read(self, row: TensorRow, *, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Read units `start` to `stop`; the first axis of the result, contiguous, counts them.

        Raises: ModelLoadError if the tensor is missing or its whole shape is not the row's.
        """
        name = next((name for name in row.stored_as if name in self._location_by_tensor), None)
        name = name or (row.stored_as or (row.name,))[0]
        if name not in self._location_by_tensor:
            raise ModelLoadError(f"{self._folder}: tensor {name} is in none of the files")
        path, file = self._location_by_tensor[name]
        stored = file.get_slice(name)  # type: ignore[no-untyped-call]
        shape = tuple(stored.get_shape())
        expected = row.shape
        if row.interleaved is not None:
            expected = (len(QKV_PARTS) * row.units, *row.shape[1:])
        if shape != expected:
            raise ModelLoadError(
                f"{path}: tensor {name} has shape {shape}, config.json says {expected}"
            )
        part = _read_part(stored, row, start=start, stop=stop)
        if not part.is_floating_point() or part.element_size() < 2:
            raise ModelLoadError(f"{path}: tensor {name} is {part.dtype}, not a plain float")
        return part.to(dtype).contiguous()


def _read_part(stored: "StoredTensor", row: TensorRow, *, start: int, stop: int) -> torch.Tensor:
    if row.interleaved is None:
        return stored[:, start:stop].t() if row.unit_axis == 1 else stored[start:stop]
    size = row.units // row.interleaved.heads
    first_head, end_head = start // size, -(-stop // size)
    parts = len(QKV_PARTS)
    all_parts = stored[first_head * parts * size : end_head * parts * size]
    by_head = all_parts.view(-1, parts, size, *all_parts.shape[1:])[:, row.interleaved.part]
    offset = first_head * size
    return by_head.flatten(0, 1)[start - offset : stop - offset]


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

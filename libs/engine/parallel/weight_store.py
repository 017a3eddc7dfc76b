"""Holds a worker's weights by canonical slice: for its decoders, and for its peers.

A slice is kept with its units along the first axis (columns, behind which partial sums are added
up, lie transposed), so that every range of units is one piece of memory: it is sent without a copy,
and what arrives lies where it is used. Positions share what they have in common. Where a decoder
needs a range of its own (half of the rows, or three tensors one below another), the store makes it
once, and keeps the part as a view of it.

    q  [=========]  held for the position that serves
       [====]       exact, for the one that is staged; `keep_only` then frees the whole

On a CPU, decoders pack their linears into a layout of oneDNN's own, a second copy beside the plain
one here: 334 MiB beside 382 for a llama of 100M parameters in fp32. A tensor that is read whole and
needs no conversion stays a window on the mapped file, whose pages processes share and the system
can take back.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from threading import RLock

import torch

from libs.engine.checkpoint import Checkpoint
from libs.engine.model_config import ModelConfig
from libs.engine.tensor_bytes import bytes_of
from libs.engine.tensor_rows import TensorRow, tensor_rows
from libs.kernel.core import require
from libs.transfer.layout import TensorSlice, missing
from libs.transfer.spans import joined


class WeightStore:
    """The weights that this process holds; may be called from any thread."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self._rows = {row.name: row for row in tensor_rows(config)}
        self._pieces: dict[str, dict[TensorSlice, torch.Tensor]] = defaultdict(dict)
        self._fused: dict[tuple[TensorSlice, ...], torch.Tensor] = {}
        self._lock = RLock()

    @property
    def element_bytes(self) -> int:
        """Size of one element."""
        return self.dtype.itemsize

    def held(self) -> tuple[TensorSlice, ...]:
        """Return all that is here, in as few slices as possible."""
        with self._lock:
            return tuple(
                next(iter(pieces)).part(span)
                for pieces in self._pieces.values()
                if pieces
                for span in joined(slice_.span for slice_ in pieces)
            )

    @property
    def memory_bytes(self) -> int:
        """Memory that the store keeps, what is shared counted once; a decoder's packed copies are
        not the store's."""
        with self._lock:
            tensors = [tensor for pieces in self._pieces.values() for tensor in pieces.values()]
            storages = [tensor.untyped_storage() for tensor in (*tensors, *self._fused.values())]
            return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def missing(self, slices: Iterable[TensorSlice]) -> tuple[TensorSlice, ...]:
        """Return the parts that are not here."""
        return missing(slices, self.held())

    def view(self, slice_: TensorSlice) -> memoryview:
        """Return the bytes of a slice that is here, unit by unit; of use until it is dropped."""
        return bytes_of(self.tensor(slice_).cpu())

    def read_into(self, slice_: TensorSlice, out: memoryview) -> None:
        """Copy the bytes of a slice that is here."""
        out.cast("B")[:] = self.view(slice_)

    def take(self, slice_: TensorSlice, data: memoryview) -> None:
        """Add a slice whose bytes a peer has sent; what is here already stays as it is."""
        row = self._rows[slice_.tensor]
        tensor = torch.empty(self._shape(row, slice_), dtype=self.dtype)
        require(data.nbytes == slice_.bytes, f"{data.nbytes} bytes for {slice_}")
        bytes_of(tensor)[:] = data.cast("B")
        self._add(slice_, tensor)

    def load(self, slices: Iterable[TensorSlice], checkpoint: Checkpoint) -> int:
        """Read what is missing of these slices from the model's files; return its bytes.

        Raises: ModelLoadError naming the file and tensor that is missing or wrong.
        """
        wanted = self.missing(slices)
        for slice_ in wanted:
            row = self._rows[slice_.tensor]
            tensor = checkpoint.read(row, start=slice_.start, stop=slice_.stop, dtype=self.dtype)
            # A part of a tensor would count as all that the file maps around it.
            self._add(slice_, _owned(tensor))
        return sum(slice_.bytes for slice_ in wanted)

    def tensor(self, slice_: TensorSlice) -> torch.Tensor:
        """Return a slice that is here, units first: a view where it lies in one piece."""
        with self._lock:
            pieces = self._pieces[slice_.tensor]
            for piece, tensor in pieces.items():
                if piece.span.covers(slice_.span):
                    return tensor[slice_.start - piece.start : slice_.stop - piece.start]
            spans = slice_.span.cut_at(piece.span for piece in pieces)
            require(len(spans) > 1, f"{slice_} is not held here")
            return torch.cat([self.tensor(slice_.part(span)) for span in spans])

    def joined(self, slices: Iterable[TensorSlice]) -> torch.Tensor:
        """Return slices one below another, for the caller alone."""
        return torch.cat([self.tensor(slice_) for slice_ in slices])

    def exact(self, slices: tuple[TensorSlice, ...]) -> torch.Tensor:
        """Return slices one below another, in memory that holds nothing else and that the store
        keeps using for them."""
        with self._lock:
            if slices in self._fused:
                return self._fused[slices]
            if len(slices) == 1 and slices[0] in self._pieces[slices[0].tensor]:
                return self._pieces[slices[0].tensor][slices[0]]
            fused = self.joined(slices)
            for slice_, part in _parts_of(fused, slices):
                self._pieces[slice_.tensor][slice_] = part
            self._fused[slices] = fused
            return fused

    def keep_only(self, slices: Iterable[TensorSlice]) -> None:
        """Drop all that is in none of these slices.

        Decoders of the kept positions go on using the store's memory; what only a dropped one used
        is freed with it.
        """
        wanted = sorted(slices, key=lambda slice_: -slice_.bytes)
        with self._lock:
            self._fused = {
                key: fused for key, fused in self._fused.items() if set(key).issubset(wanted)
            }
            kept: dict[str, dict[TensorSlice, torch.Tensor]] = defaultdict(dict)
            for key, fused in self._fused.items():
                for slice_, part in _parts_of(fused, key):
                    kept[slice_.tensor][slice_] = part
            for slice_ in self._held_parts(wanted):
                pieces = kept[slice_.tensor]
                if not any(piece.span.covers(slice_.span) for piece in pieces):
                    pieces[slice_] = _owned(self.tensor(slice_))
            self._pieces = kept

    def _held_parts(self, wanted: Iterable[TensorSlice]) -> list[TensorSlice]:
        held: list[TensorSlice] = []
        for slice_ in wanted:
            pieces = [piece.span for piece in self._pieces[slice_.tensor]]
            parts = [part for piece in pieces if (part := piece.overlap(slice_.span)) is not None]
            held += [slice_.part(span) for span in joined(parts)]
        return held

    def _add(self, slice_: TensorSlice, tensor: torch.Tensor) -> None:
        with self._lock:
            self._pieces[slice_.tensor].setdefault(slice_, tensor.to(self.device))

    def _shape(self, row: TensorRow, slice_: TensorSlice) -> tuple[int, ...]:
        rest = row.shape[: row.unit_axis] + row.shape[row.unit_axis + 1 :]
        require(slice_.stop <= row.units, f"{slice_} of {row.units} units")
        bytes_per_unit = row.unit_elements * self.element_bytes
        require(slice_.bytes_per_unit == bytes_per_unit, f"{slice_}: not {bytes_per_unit} a unit")
        return (len(slice_.span), *rest)


def _parts_of(
    fused: torch.Tensor, slices: Iterable[TensorSlice]
) -> Iterator[tuple[TensorSlice, torch.Tensor]]:
    start = 0
    for slice_ in slices:
        units = len(slice_.span)
        yield slice_, fused[start : start + units]
        start += units


def _owned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or a copy if it is part of something larger that it would keep alive."""
    is_whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if is_whole else tensor.clone()

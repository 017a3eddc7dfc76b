"""Linear layers in the memory layout that is fastest where they run.

Measured (one thread of an AMX Xeon, all linears of a llama of 100M parameters, fp32, ms; the
floor of reading 351 MB at 16 GB/s is 22):

    rows       F.linear    transposed mm    pre-packed oneDNN
    1              27.7             24.8                 30.8
    4              52.1             45.7                 31.5
    8              69.4             57.6                 37.8
    32             86.3             85.6                 64.8
    256             394              309                  312

On AMD, where MKL is slow, packing wins everywhere. So on a CPU weights are packed, in place of
the plain ones, and a second, transposed copy for single rows is kept only if it was measured
to be faster here and fits the caller's bound. The packing operators are private to torch: their
presence and their result are checked once, and plain F.linear is used if either fails.
"""

import time
from enum import StrEnum
from functools import cache
from typing import Final

import torch
import torch.nn.functional as functional

from libs.kernel.units import MIB

PACKED_FOR_ROWS: Final = 16
"""The row count that the packed layout is tuned for; 16 to 64 gave the same layout's speed."""
ROW_COPY_WEIGHT_BYTES_MIN: Final = 1 * MIB
"""Smaller weights stay in a core's own cache, where the layout matters little."""
PROBE_SHAPE: Final = (2048, 1024)
PROBE_COPIES: Final = 4
"""4 x 8 MiB in fp32: more than a core's own cache holds, as in a real model."""
PROBE_GAIN_MIN: Final = 1.05
"""A second copy must be this much faster, so that noise does not decide for it."""


class Layout(StrEnum):
    """How a weight lies in memory."""

    PLAIN = "plain"
    """As the checkpoint has it, for F.linear."""
    PACKED = "packed"
    """As oneDNN wants it."""
    PACKED_AND_TRANSPOSED = "packed_and_transposed"
    """Packed, and a second time transposed, for calls with one row."""


class Linear:
    """y_RO = x_RI @ w_OI^T + b_O, for rows R, inputs I and outputs O."""

    def __init__(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, *, layout: Layout
    ) -> None:
        """Take over the weight; the caller drops its own reference to save memory."""
        self._bias = bias_O
        self._plain = weight_OI if layout is Layout.PLAIN else None
        self._packed = None if layout is Layout.PLAIN else _pack(weight_OI)
        self._transposed: torch.Tensor | None = None
        if layout is Layout.PACKED_AND_TRANSPOSED:
            self._transposed = weight_OI.t().contiguous()

    def __call__(self, x_RI: torch.Tensor) -> torch.Tensor:
        """Apply the layer."""
        if self._transposed is not None and x_RI.shape[0] == 1:
            if self._bias is None:
                return torch.mm(x_RI, self._transposed)
            return torch.addmm(self._bias, x_RI, self._transposed)
        if self._packed is not None:
            return _packed_linear(x_RI, self._packed, self._bias)
        assert self._plain is not None
        return functional.linear(x_RI, self._plain, self._bias)


class LayoutChooser:
    """Chooses the layout of each weight of one model, within a bound for second copies."""

    def __init__(self, *, row_copy_bytes_max: int) -> None:
        self._row_copy_bytes_left = row_copy_bytes_max

    def choose(self, elements: int, dtype: torch.dtype, device: torch.device) -> Layout:
        """Return the fastest layout for a weight of so many elements, and count its bytes."""
        if device.type != "cpu" or not is_packing_sound(dtype):
            return Layout.PLAIN
        weight_bytes = elements * dtype.itemsize
        if not ROW_COPY_WEIGHT_BYTES_MIN <= weight_bytes <= self._row_copy_bytes_left:
            return Layout.PACKED
        if not is_row_copy_faster(dtype):
            return Layout.PACKED
        self._row_copy_bytes_left -= weight_bytes
        return Layout.PACKED_AND_TRANSPOSED


@cache
def is_packing_sound(dtype: torch.dtype) -> bool:
    """Whether the packing operators exist here and agree with F.linear."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    ):
        return False
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(48, 32, generator=generator).to(dtype)
    x_RI = torch.randn(3, 32, generator=generator).to(dtype)
    bias_O = torch.randn(48, generator=generator).to(dtype)
    try:
        packed = _packed_linear(x_RI, _pack(weight_OI), bias_O)
    except RuntimeError:
        return False
    plain = functional.linear(x_RI, weight_OI, bias_O)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    return torch.allclose(packed.float(), plain.float(), atol=tolerance, rtol=tolerance)


@cache
def is_row_copy_faster(dtype: torch.dtype) -> bool:
    """Whether one row goes faster through a transposed matrix than through a packed one here."""
    weights = [torch.ones(PROBE_SHAPE, dtype=dtype) for _ in range(PROBE_COPIES)]
    x_RI = torch.ones(1, PROBE_SHAPE[1], dtype=dtype)
    packed = [_pack(weight_OI) for weight_OI in weights]
    transposed = [weight_OI.t().contiguous() for weight_OI in weights]
    packed_ns = transposed_ns = 1 << 62
    for _ in range(5):
        started_at_ns = time.perf_counter_ns()
        for weight in packed:
            _packed_linear(x_RI, weight, None)
        between_at_ns = time.perf_counter_ns()
        for weight in transposed:
            torch.mm(x_RI, weight)
        packed_ns = min(packed_ns, between_at_ns - started_at_ns)
        transposed_ns = min(transposed_ns, time.perf_counter_ns() - between_at_ns)
    return packed_ns > PROBE_GAIN_MIN * transposed_ns


def _pack(weight_OI: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(
        weight_OI.contiguous(), PACKED_FOR_ROWS
    )
    return packed


def _packed_linear(
    x_RI: torch.Tensor, packed: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    y_RO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_RI, packed, bias_O, "none", [], "")
    return y_RO

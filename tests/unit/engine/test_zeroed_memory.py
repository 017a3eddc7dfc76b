"""Zeros that are taken from the system only when they are written."""

import mmap
from pathlib import Path

import pytest
import torch

from libs.engine.zeroed_memory import lazy_zeros
from libs.kernel.units import MIB

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_they_are_zero_and_can_be_written(dtype: torch.dtype) -> None:
    tensor = lazy_zeros((3, 5, 7), dtype=dtype, device=CPU)
    assert tensor.shape == (3, 5, 7)
    assert not tensor.any()
    tensor[1, 2] = 1
    assert tensor.sum() == 7


def test_nothing_is_nothing() -> None:
    assert lazy_zeros((0, 4), dtype=torch.float32, device=CPU).numel() == 0


def test_a_gigabyte_takes_no_memory_until_it_is_used() -> None:
    before_bytes = _resident_bytes()
    tensor = lazy_zeros((1024, MIB), dtype=torch.uint8, device=CPU)
    assert _resident_bytes() - before_bytes < 64 * MIB
    tensor[:128] = 1
    assert _resident_bytes() - before_bytes >= 128 * MIB


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * mmap.PAGESIZE

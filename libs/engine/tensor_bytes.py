"""Tensors as bytes and bytes as tensors, without a copy, for what is sent to peers."""

import torch


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor; it lives as long as the view does."""
    assert tensor.is_contiguous()
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]

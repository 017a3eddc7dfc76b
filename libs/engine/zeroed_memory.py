"""Large zeroed tensors that cost nothing until they are used.

On a CPU `torch.zeros` writes every byte: 1.6 GiB of KV, of which a minute's work may touch a tenth,
take a second of a core and of its memory bandwidth, while the position that serves goes on
stepping. Fresh pages of the system are zero already and exist from the first write on.
"""

import math
import mmap
from collections.abc import Sequence

import torch


def lazy_zeros(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor of zeros; its memory goes back to the system with its last reference."""
    elements = math.prod(shape)
    if device.type != "cpu" or elements == 0:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    pages = mmap.mmap(-1, elements * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))

"""Memory for buffers on their way, kept warm from one transfer to the next.

Fresh memory is mapped page by page as it is first touched, which on a virtual machine costs as much
again as the copy into it.
"""

from typing import Final

from libs.kernel.units import MIB

KEPT_BYTES_MAX: Final = 64 * MIB
"""What a pool keeps for later; beyond it the buffer that was given back first is freed."""
GRAIN_BYTES: Final = 1 * MIB
"""Sizes are rounded up to multiples of this, so that transfers can use each other's buffers."""


class StagingPool:
    """Lends buffers. What is lent is bounded by its borrowers, what is kept by the pool."""

    def __init__(self, *, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._kept: list[bytearray] = []

    def borrow(self, size: int) -> bytearray:
        """Return a buffer of at least this size, with whatever was in it before."""
        fitting = [buffer for buffer in self._kept if len(buffer) >= size]
        if not fitting:
            return bytearray(-(-size // GRAIN_BYTES) * GRAIN_BYTES)
        smallest = min(fitting, key=len)
        self._kept = [buffer for buffer in self._kept if buffer is not smallest]
        return smallest

    def give_back(self, buffer: bytearray) -> None:
        """Keep the buffer for the next borrower. Nothing may write to it any more: a buffer that a
        broken connection was receiving into is to be dropped instead."""
        self._kept.append(buffer)
        while sum(map(len, self._kept)) > self._kept_bytes_max:
            del self._kept[0]

"""Host memory for KV blocks of one position, and the copies between it and the device.

A slot holds one block of all layers and KV heads of the position, with a checksum that is taken
when it is stored and compared before it is used: memory that changed in between costs computing,
and never a wrong token.

    store   device blocks --gather--> one buffer --> slots      stream of its own, lowest priority
    load    slots --> one buffer --checksum--> scatter --> device blocks

On a CPU both run on the calling thread, which is not the engine's: the blocks that are read are
full and pinned, those that are written are reserved, so no step touches either. On CUDA,
experimental, the slots are pinned memory, and a store waits for the compute that was enqueued
before it.

Legend: L layers, E elements of one block of one layer, S slots, B blocks of one copy.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
import xxhash

from libs.engine.attention import PagedAttention
from libs.engine.tensor_bytes import bytes_of

COPY_BLOCKS_MAX: Final = 64
"""Blocks in one buffer: bounds the memory that a copy needs beside the slots."""
LOWEST_PRIORITY: Final = 0
"""Of CUDA's streams; compute has the same or a higher one."""


class HostMemory:
    """The slots of one position. One call at a time, from any thread but the engine's."""

    def __init__(self, attention: PagedAttention, *, slots: int) -> None:
        self._attention = attention
        is_cuda = attention.device.type == "cuda"
        # On a CPU the pages are taken from the system only when first used.
        self._slots_SLE = torch.empty(
            (slots, *attention.block_shape), dtype=attention.dtype, pin_memory=is_cuda
        )
        self._checksums: list[int | None] = [None] * slots
        self._stream: torch.cuda.Stream | None = None
        if is_cuda:
            self._stream = torch.cuda.Stream(  # type: ignore[no-untyped-call]
                attention.device, priority=LOWEST_PRIORITY
            )

    @property
    def slots(self) -> int:
        """How many blocks there is room for."""
        return len(self._checksums)

    @property
    def block_bytes(self) -> int:
        """Of one slot."""
        return self._slots_SLE[0].nbytes if self.slots else 0

    def store(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks of the device into slots: pairs of block and slot.

        Until it returns, whatever is in the slots is worthless.
        """
        for part in self._parts(pairs):
            slots = [slot for _, slot in part]
            for slot in slots:
                self._checksums[slot] = None
            with self._copying():
                rows_BLE = self._attention.gather_blocks([block for block, _ in part]).to("cpu")
            self._slots_SLE.index_copy_(0, torch.tensor(slots), rows_BLE)
            for slot, checksum in zip(slots, _checksums(rows_BLE), strict=True):
                self._checksums[slot] = checksum

    def load(self, pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Copy slots into blocks of the device: pairs of slot and block; return the slots whose
        content is not what was stored, and whose blocks were left alone."""
        corrupt: list[int] = []
        for part in self._parts(pairs):
            slots = [slot for slot, _ in part]
            # Compared in the buffer, so that nothing can change between check and use.
            rows_BLE = self._slots_SLE.index_select(0, torch.tensor(slots))
            right = [
                index
                for index, checksum in enumerate(_checksums(rows_BLE))
                if checksum == self._checksums[slots[index]]
            ]
            if len(right) < len(part):
                corrupt += [slot for index, slot in enumerate(slots) if index not in right]
                rows_BLE = rows_BLE[right]
            if right:
                with self._copying():
                    self._attention.scatter_blocks([part[index][1] for index in right], rows_BLE)
        return tuple(corrupt)

    def _parts(self, pairs: Sequence[tuple[int, int]]) -> list[Sequence[tuple[int, int]]]:
        starts = range(0, len(pairs), COPY_BLOCKS_MAX)
        return [pairs[start : start + COPY_BLOCKS_MAX] for start in starts]

    @contextmanager
    def _copying(self) -> Iterator[None]:
        """Run on the stream for copies, behind the compute that is enqueued; wait at the end."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.default_stream(self._attention.device))
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()


def _checksums(rows_BLE: torch.Tensor) -> list[int]:
    content = bytes_of(rows_BLE)
    size = rows_BLE[0].nbytes
    starts = range(0, content.nbytes, size)
    return [xxhash.xxh3_64_intdigest(content[start : start + size]) for start in starts]

"""Real KV memory behind a peer network: the engine's own paged attention."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from libs.engine.attention import KvShape, PagedAttention
from libs.engine.host_memory import HostMemory
from libs.kernel.errors import Unavailable
from tests.integration.gpu_worker_peers.shapes import (
    BLOCK_TOKENS,
    BLOCKS,
    HEAD_SIZE,
    KV_HEADS,
    LAYERS,
)

HOST_SLOTS = 8


class KvMemory:
    """The KV of a worker's positions, touched by one thread alone, as an engine's is."""

    def __init__(self) -> None:
        self.positions: dict[str, PagedAttention] = {}
        self.host: dict[str, HostMemory] = {}
        self.yields: list[tuple[str, int]] = []
        self.imports = 0
        self.may_import = asyncio.Event()
        """Unset: imports wait, as for a long step."""
        self.may_import.set()
        self.may_export = asyncio.Event()
        """Unset: exports wait."""
        self.may_export.set()
        self.exporting = asyncio.Event()
        """An export has begun."""
        self._thread = ThreadPoolExecutor(1)

    def hold(self, replica_id: str, *, layers: range, heads: range) -> None:
        self.positions[replica_id] = PagedAttention(
            KvShape(
                layers=len(layers),
                layer_start=layers.start,
                blocks=BLOCKS,
                block_tokens=BLOCK_TOKENS,
                kv_heads=len(heads),
                kv_head_start=heads.start,
                head_size=HEAD_SIZE,
            ),
            heads=2 * len(heads),
            windows=set(),
            context_tokens_max=64,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )

    async def export_kv(
        self,
        *,
        replica_id: str,
        layers: range,
        heads: range,
        block_ids: Sequence[int],
        out: memoryview,
    ) -> None:
        self.exporting.set()
        await self.may_export.wait()
        position = self._position(replica_id)
        await asyncio.get_running_loop().run_in_executor(
            self._thread,
            lambda: position.export_blocks(
                layers=layers, heads=heads, block_ids=block_ids, out=out
            ),
        )

    async def import_kv(
        self,
        *,
        replica_id: str,
        layers: range,
        heads: range,
        block_ids: Sequence[int],
        data: memoryview,
    ) -> None:
        await self.may_import.wait()
        position = self._position(replica_id)
        self.imports += 1
        await asyncio.get_running_loop().run_in_executor(
            self._thread,
            lambda: position.import_blocks(
                layers=layers, heads=heads, block_ids=block_ids, data=data
            ),
        )

    def request_yield(self, *, replica_id: str, step_id: int) -> None:
        self.yields.append((replica_id, step_id))

    async def store_to_host(self, *, replica_id: str, pairs: Sequence[tuple[int, int]]) -> None:
        self._host(replica_id, max(slot for _, slot in pairs)).store(pairs)

    async def load_from_host(
        self, *, replica_id: str, pairs: Sequence[tuple[int, int]]
    ) -> tuple[int, ...]:
        return self._host(replica_id, max(slot for slot, _ in pairs)).load(pairs)

    def close(self) -> None:
        self._thread.shutdown()

    def _host(self, replica_id: str, slot_max: int) -> HostMemory:
        if replica_id not in self.host:
            self.host[replica_id] = HostMemory(self._position(replica_id), slots=HOST_SLOTS)
        if slot_max >= HOST_SLOTS:
            raise Unavailable(f"{replica_id} has no such slots", retry_after_ns=1)
        return self.host[replica_id]

    def _position(self, replica_id: str) -> PagedAttention:
        if replica_id not in self.positions:
            raise Unavailable(f"no {replica_id} here", retry_after_ns=1)
        return self.positions[replica_id]


def random_kv(*, seed: int) -> torch.Tensor:
    """Return KV of every block of the whole model."""
    shape = (LAYERS, BLOCKS, BLOCK_TOKENS, 2, KV_HEADS, HEAD_SIZE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def part_of(kv_LBT2KD: torch.Tensor, layers: range, heads: range) -> torch.Tensor:
    """Return the part of the whole model's KV that one rank holds."""
    rows = kv_LBT2KD[layers.start : layers.stop]
    return rows[:, :, :, :, heads.start : heads.stop].contiguous()

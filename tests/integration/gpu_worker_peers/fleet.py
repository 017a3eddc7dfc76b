"""Workers with a real network and real KV memory, around a host that only keeps book."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from libs.engine.attention import KvShape, PagedAttention
from libs.engine.parallel.position import layer_ranges
from libs.engine.steps import StepPlan
from libs.kernel.errors import Unavailable
from libs.runtime.clock import SystemClock
from libs.transfer.opening import open_transport
from libs.transfer.transport import Transport
from services.gpu_worker.peers.kv_plan import KvGeometry
from services.gpu_worker.peers.network import PeerNetwork
from services.gpu_worker.peers.ports import PeerOptions

LAYERS, KV_HEADS, HEAD_SIZE, BLOCK_TOKENS, BLOCKS = 5, 4, 8, 4, 24
CELL_BYTES = BLOCK_TOKENS * 2 * HEAD_SIZE * 4
"""Of one head of one layer of one block, in fp32."""
MODEL_BLOCK_BYTES = LAYERS * KV_HEADS * CELL_BYTES


def rectangles(stages: int, shards: int) -> list[tuple[range, range]]:
    """Cut the model as the engine does, KV heads replicated where there are more shards."""
    heads_each = max(1, KV_HEADS // shards)
    starts = [shard * KV_HEADS // shards for shard in range(shards)]
    return [
        (layers, range(start, start + heads_each))
        for layers in layer_ranges(LAYERS, stages=stages)
        for start in starts
    ]


GEOMETRY = KvGeometry(rectangles=rectangles, cell_bytes=CELL_BYTES)


@dataclass
class Bookkeeper:
    """The worker behind a network: remembers what it was told, gives out blocks in order."""

    known: set[int] = field(default_factory=set)
    free: list[int] = field(default_factory=lambda: list(range(BLOCKS)))
    plans: list[StepPlan] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    reserved: dict[str, dict[int, int]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def plan_received(self, *, replica_id: str, replica_epoch: int, plan: StepPlan) -> None:
        self.plans.append(plan)
        self.changed.set()

    def peer_lost(
        self, *, replica_id: str, replica_epoch: int, worker_id: str, reason: str
    ) -> None:
        self.lost.append((replica_id, worker_id))
        self.changed.set()

    async def kv_offered(
        self, *, replica_id: str, replica_epoch: int, ticket_id: str, hashes: tuple[int, ...]
    ) -> tuple[tuple[int, int], ...]:
        wanted = [block_hash for block_hash in hashes if block_hash not in self.known]
        pairs = [(block_hash, self.free.pop(0)) for block_hash in wanted[: len(self.free)]]
        self.reserved[ticket_id] = dict(pairs)
        return tuple(pairs)

    async def kv_committed(
        self, *, replica_id: str, replica_epoch: int, ticket_id: str, hashes: tuple[int, ...]
    ) -> None:
        for block_hash in hashes:
            self.committed[block_hash] = self.reserved[ticket_id].pop(block_hash)
            self.known.add(block_hash)

    async def kv_dropped(self, *, replica_id: str, replica_epoch: int, ticket_id: str) -> None:
        self.dropped.append(ticket_id)
        self.free += self.reserved.pop(ticket_id).values()
        self.changed.set()

    async def until(self, told: "Sequence[object]", *, count: int = 1) -> None:
        """Wait until one of the lists above has so many entries."""
        while len(told) < count:
            self.changed.clear()
            await self.changed.wait()


class KvMemory:
    """The KV of a worker's positions, touched by one thread alone, as an engine's is."""

    def __init__(self) -> None:
        self.positions: dict[str, PagedAttention] = {}
        self.imports = 0
        self.gate = asyncio.Event()
        """Unset: imports wait, as for a long step."""
        self.gate.set()
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
        await self.gate.wait()
        position = self._position(replica_id)
        self.imports += 1
        await asyncio.get_running_loop().run_in_executor(
            self._thread,
            lambda: position.import_blocks(
                layers=layers, heads=heads, block_ids=block_ids, data=data
            ),
        )

    def close(self) -> None:
        self._thread.shutdown()

    def _position(self, replica_id: str) -> PagedAttention:
        if replica_id not in self.positions:
            raise Unavailable(f"no {replica_id} here", retry_after_ns=1)
        return self.positions[replica_id]


@dataclass
class Worker:
    """One worker of the fleet."""

    worker_id: str
    transport: Transport
    network: PeerNetwork
    host: Bookkeeper
    memory: KvMemory
    address: str


class Fleet:
    """Workers of one transport; leave it by `close`."""

    def __init__(self, kind: str, *, options: PeerOptions | None = None) -> None:
        self.workers: list[Worker] = []
        self._kind = kind
        self._options = options
        self._shared = open_transport("loopback", host="fleet") if kind == "loopback" else None

    async def start(self, workers: int) -> None:
        for _ in range(workers):
            await self.add()

    async def add(self) -> Worker:
        worker_id = f"worker-{len(self.workers)}"
        transport = self._shared or open_transport(self._kind, host="127.0.0.1")  # type: ignore[arg-type]
        host, memory = Bookkeeper(), KvMemory()
        network = PeerNetwork(
            worker_id=worker_id,
            transport=transport,
            host=host,
            engine=memory,
            geometry=GEOMETRY,
            clock=SystemClock(),
            options=self._options,
        )
        worker = Worker(
            worker_id=worker_id,
            transport=transport,
            network=network,
            host=host,
            memory=memory,
            address=await network.start(),
        )
        self.workers.append(worker)
        return worker

    def roster(
        self,
        replica_id: str,
        shape: tuple[int, int],
        worker_numbers: Sequence[int],
        *,
        epoch: int = 1,
    ) -> ReplicaRoster:
        return roster_of(
            replica_id,
            shape,
            [(self.workers[n].worker_id, self.workers[n].address) for n in worker_numbers],
            epoch=epoch,
        )

    async def open(self, roster: ReplicaRoster) -> None:
        """Open a replica on all its workers, and give each its KV memory."""
        cuts = rectangles(roster.stages, roster.shards)
        for rank, placed in enumerate(roster.workers):
            layers, heads = cuts[rank]
            self.worker(placed.worker_id).memory.hold(roster.replica_id, layers=layers, heads=heads)
        await asyncio.gather(
            *(
                self.worker(placed.worker_id).network.open_replica(roster, rank=rank)
                for rank, placed in enumerate(roster.workers)
            )
        )

    def worker(self, worker_id: str) -> Worker:
        return next(worker for worker in self.workers if worker.worker_id == worker_id)

    def lead(self, roster: ReplicaRoster) -> Worker:
        assert roster.lead is not None
        return self.worker(roster.lead.worker_id)

    async def close(self) -> None:
        for worker in self.workers:
            await worker.network.stop()
            await worker.transport.close()
            worker.memory.close()

    async def write(self, roster: ReplicaRoster, kv_LBT2KD: torch.Tensor) -> None:
        """Put the whole model's KV into a replica's memory, each rank its part."""
        for rank, (layers, heads) in enumerate(rectangles(roster.stages, roster.shards)):
            part = _part(kv_LBT2KD, layers, heads)
            worker = self.worker(roster.workers[rank].worker_id)
            worker.memory.positions[roster.replica_id].import_blocks(
                layers=layers,
                heads=heads,
                block_ids=range(kv_LBT2KD.shape[1]),
                data=memoryview(part.numpy()).cast("B"),
            )

    def differing(
        self, roster: ReplicaRoster, kv_LBT2KD: torch.Tensor, blocks: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Return (rank, block) where a target's block differs from its source's block."""
        result = []
        for rank, (layers, heads) in enumerate(rectangles(roster.stages, roster.shards)):
            worker = self.worker(roster.workers[rank].worker_id)
            for source_block, target_block in blocks:
                expected = _part(kv_LBT2KD, layers, heads)[:, source_block].contiguous()
                found = bytearray(expected.numel() * 4)
                worker.memory.positions[roster.replica_id].export_blocks(
                    layers=layers, heads=heads, block_ids=[target_block], out=memoryview(found)
                )
                if bytes(found) != expected.numpy().tobytes():
                    result.append((rank, target_block))
        return result


def roster_of(
    replica_id: str,
    shape: tuple[int, int],
    workers: Sequence[tuple[str, str]],
    *,
    epoch: int = 1,
) -> ReplicaRoster:
    """Place these workers, as (id, address), in the order of ranks."""
    stages, shards = shape
    return ReplicaRoster(
        replica_id=replica_id,
        replica_epoch=epoch,
        stages=stages,
        shards=shards,
        workers=tuple(
            PlacedWorker(
                worker_id=worker_id,
                peer_address=address,
                stage=rank // shards,
                shard=rank % shards,
            )
            for rank, (worker_id, address) in enumerate(workers)
        ),
    )


def random_kv(*, seed: int) -> torch.Tensor:
    """Return KV of every block of the whole model."""
    shape = (LAYERS, BLOCKS, BLOCK_TOKENS, 2, KV_HEADS, HEAD_SIZE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _part(kv_LBT2KD: torch.Tensor, layers: range, heads: range) -> torch.Tensor:
    rows = kv_LBT2KD[layers.start : layers.stop]
    return rows[:, :, :, :, heads.start : heads.stop].contiguous()

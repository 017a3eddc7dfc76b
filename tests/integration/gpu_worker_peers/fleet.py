"""Workers with a real network and real KV memory, around a host that only keeps book."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from libs.contracts.handover import ReplicaRoster
from libs.runtime.clock import SystemClock
from libs.transfer.opening import open_transport
from libs.transfer.transport import Transport
from services.gpu_worker.peers.network import PeerNetwork
from services.gpu_worker.peers.ports import PeerOptions
from tests.integration.gpu_worker_peers.bookkeeper import Bookkeeper
from tests.integration.gpu_worker_peers.kv_memory import KvMemory, part_of
from tests.integration.gpu_worker_peers.shapes import GEOMETRY, rectangles, roster_of


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
            part = part_of(kv_LBT2KD, layers, heads)
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
                expected = part_of(kv_LBT2KD, layers, heads)[:, source_block].contiguous()
                found = bytearray(expected.numel() * 4)
                worker.memory.positions[roster.replica_id].export_blocks(
                    layers=layers, heads=heads, block_ids=[target_block], out=memoryview(found)
                )
                if bytes(found) != expected.numpy().tobytes():
                    result.append((rank, target_block))
        return result

"""`worker-1` in a process of its own: prints its address, then opens the replicas it is told of.

Each line of its input is its rank and the JSON of a roster; each is answered by `open`. Its engine
never comes to a step boundary, so that whatever ends a copy is the fate of the process.
"""

import asyncio
import sys
from collections.abc import Sequence

from libs.contracts.handover import ReplicaRoster
from libs.runtime.clock import SystemClock
from libs.transfer.opening import open_transport
from services.gpu_worker.peers.network import PeerNetwork
from tests.integration.gpu_worker_peers.bookkeeper import Bookkeeper
from tests.integration.gpu_worker_peers.shapes import GEOMETRY


class BusyEngine:
    """Runs one step for ever."""

    async def export_kv(
        self,
        *,
        replica_id: str,
        layers: range,
        heads: range,
        block_ids: Sequence[int],
        out: memoryview,
    ) -> None:
        await asyncio.Event().wait()

    async def import_kv(
        self,
        *,
        replica_id: str,
        layers: range,
        heads: range,
        block_ids: Sequence[int],
        data: memoryview,
    ) -> None:
        await asyncio.Event().wait()


async def main(kind: str) -> None:
    network = PeerNetwork(
        worker_id="worker-1",
        transport=open_transport(kind, host="127.0.0.1"),  # type: ignore[arg-type]
        host=Bookkeeper(),
        engine=BusyEngine(),
        geometry=GEOMETRY,
        clock=SystemClock(),
    )
    print(await network.start(), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        rank, _, text = line.partition(" ")
        await network.open_replica(ReplicaRoster.model_validate_json(text), rank=int(rank))
        print("open", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

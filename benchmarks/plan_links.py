"""How long a plan takes from a replica's lead to a member and back, between two processes.

    python -m benchmarks.plan_links [--plans 2000] [--json FILE]

The member sends each plan back over a replica that it leads itself, so a round trip is two whole
deliveries: pack, send, receive, check, hand to the worker. A step pays one of them. The bound is
what two processes need for two small messages over loopback TCP, about 60 us on a quiet machine.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from libs.engine.steps import PlanEntry, StepPlan
from libs.kernel.units import NS_PER_US
from libs.runtime.clock import SystemClock
from libs.transfer.opening import open_transport
from services.gpu_worker.peers.kv_plan import KvGeometry
from services.gpu_worker.peers.network import PeerNetwork

SEQUENCES: Final = (1, 8, 64)
BLOCKS_PER_SEQUENCE: Final = 32
WARM_UP_PLANS: Final = 50
LIMIT_S: Final = 300


class NoKv:
    """An engine and a host that are asked for plans alone."""

    def __init__(self) -> None:
        self.plans: asyncio.Queue[StepPlan] = asyncio.Queue()

    def plan_received(self, *, replica_id: str, replica_epoch: int, plan: StepPlan) -> None:
        """Keep the plan for whoever waits."""
        self.plans.put_nowait(plan)

    def peer_lost(
        self, *, replica_id: str, replica_epoch: int, worker_id: str, reason: str
    ) -> None:
        """Do nothing: one of the two stops first; LIMIT_S ends what cannot go on."""

    async def kv_offered(
        self, *, replica_id: str, replica_epoch: int, ticket_id: str, hashes: tuple[int, ...]
    ) -> tuple[tuple[int, int], ...]:
        """Want nothing."""
        return ()

    def request_yield(self, *, replica_id: str, step_id: int) -> None:
        """Nothing computes here."""

    async def store_to_host(self, *, replica_id: str, pairs: Sequence[tuple[int, int]]) -> None:
        """There is no KV."""

    async def load_from_host(
        self, *, replica_id: str, pairs: Sequence[tuple[int, int]]
    ) -> tuple[int, ...]:
        """There is no KV."""
        return ()

    async def kv_committed(
        self, *, replica_id: str, replica_epoch: int, ticket_id: str, hashes: tuple[int, ...]
    ) -> None:
        """Nothing is ever committed."""

    async def kv_dropped(self, *, replica_id: str, replica_epoch: int, ticket_id: str) -> None:
        """Nothing is ever reserved."""

    async def export_kv(
        self,
        *,
        replica_id: str,
        layers: range,
        heads: range,
        block_ids: Sequence[int],
        out: memoryview,
    ) -> None:
        """There is no KV."""

    async def import_kv(
        self,
        *,
        replica_id: str,
        layers: range,
        heads: range,
        block_ids: Sequence[int],
        data: memoryview,
    ) -> None:
        """There is no KV."""


def a_network(worker_id: str, worker: NoKv) -> PeerNetwork:
    """Return a network over TCP of a model without KV."""
    return PeerNetwork(
        worker_id=worker_id,
        transport=open_transport("tcp", host="127.0.0.1"),
        host=worker,
        engine=worker,
        geometry=KvGeometry(rectangles=lambda stages, shards: (), cell_bytes=1),
        clock=SystemClock(),
    )


def a_roster(replica_id: str, lead: tuple[str, str], member: tuple[str, str]) -> ReplicaRoster:
    """Place two shards, given as worker id and address."""
    return ReplicaRoster(
        replica_id=replica_id,
        replica_epoch=1,
        stages=1,
        shards=2,
        workers=tuple(
            PlacedWorker(worker_id=worker_id, peer_address=address, stage=0, shard=shard)
            for shard, (worker_id, address) in enumerate((lead, member))
        ),
    )


def a_plan(step_id: int, *, sequences: int) -> StepPlan:
    """Return a step that decodes so many sequences of 512 tokens."""
    return StepPlan(
        step_id=step_id,
        entries=tuple(
            PlanEntry(
                sequence_id=f"request-{number:06}",
                token_ids=(1000 + number,),
                start_position=511,
                block_table=tuple(range(number, number + BLOCKS_PER_SEQUENCE)),
                is_sampling=True,
                output_index=100,
            )
            for number in range(sequences)
        ),
        opened=(),
        closed=(),
    )


async def send_back(pipe: Connection) -> None:
    """As the member: open both replicas, then send back what comes until there is no more."""
    worker = NoKv()
    network = a_network("member", worker)
    pipe.send_bytes((await network.start()).encode())
    own, peer = ("member", network.address), ("lead", pipe.recv_bytes().decode())
    await asyncio.gather(
        network.open_replica(a_roster("there", peer, own), rank=1),
        network.open_replica(a_roster("back", own, peer), rank=0),
    )
    while (plan := await worker.plans.get()).entries:
        await network.send_plan("back", plan)
    await network.stop()


async def measure(pipe: Connection, *, plans: int) -> list[dict[str, float]]:
    """As the lead: return the round trips of plans of each size, in microseconds."""
    worker = NoKv()
    network = a_network("lead", worker)
    pipe.send_bytes((await network.start()).encode())
    own, peer = ("lead", network.address), ("member", pipe.recv_bytes().decode())
    await asyncio.gather(
        network.open_replica(a_roster("there", own, peer), rank=0),
        network.open_replica(a_roster("back", peer, own), rank=1),
    )
    rows = []
    for sequences in SEQUENCES:
        times_us = []
        for step_id in range(WARM_UP_PLANS + plans):
            plan = a_plan(step_id, sequences=sequences)
            started_at_ns = time.perf_counter_ns()
            await network.send_plan("there", plan)
            await worker.plans.get()
            times_us.append((time.perf_counter_ns() - started_at_ns) / NS_PER_US)
        measured = sorted(times_us[WARM_UP_PLANS:])
        rows.append(
            {
                "sequences": sequences,
                "round_trip_us_p50": round(statistics.median(measured), 1),
                "round_trip_us_p99": round(measured[len(measured) * 99 // 100], 1),
            }
        )
    await network.send_plan("there", a_plan(0, sequences=0))
    await network.stop()
    return rows


async def _measure_in_time(pipe: Connection, *, plans: int) -> list[dict[str, float]]:
    async with asyncio.timeout(LIMIT_S):
        return await measure(pipe, plans=plans)


def _run_member(pipe: Connection) -> None:
    asyncio.run(send_back(pipe))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", type=int, default=2000)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    here, there = multiprocessing.get_context("spawn").Pipe()
    member = multiprocessing.get_context("spawn").Process(
        target=_run_member, args=(there,), daemon=True
    )
    member.start()
    rows = asyncio.run(_measure_in_time(here, plans=arguments.plans))
    member.join()
    result = json.dumps({"rows": rows}, indent=2)
    print(result)
    if arguments.json is not None:
        arguments.json.write_text(result + "\n")


if __name__ == "__main__":
    main()

"""A peer that is killed or stopped is noticed in bounded time, and what it did is not trusted."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from libs.contracts.handover import ReplicaRoster
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from services.gpu_worker.peers.ports import KvCopyEnd, PeerOptions
from tests.integration.gpu_worker_peers.conftest import OpenFleet
from tests.integration.gpu_worker_peers.fleet import Fleet
from tests.integration.gpu_worker_peers.kv_memory import random_kv
from tests.integration.gpu_worker_peers.plans import a_plan
from tests.integration.gpu_worker_peers.shapes import BLOCKS, roster_of

REPOSITORY = Path(__file__).resolve().parents[3]
KINDS = [
    "tcp",
    pytest.param(
        "ucx",
        marks=pytest.mark.skipif(find_spec("ucxx") is None, reason="ucxx is not installed"),
    ),
]
SILENCE = PeerOptions(
    alive_ns=100 * NS_PER_MS,
    silence_ns=1000 * NS_PER_MS,
    answer_ns=1000 * NS_PER_MS,
    batch_ns=2000 * NS_PER_MS,
    piece_ns=1000 * NS_PER_MS,
)


@dataclass
class PeerProcess:
    """`worker-1`, which can be killed and stopped."""

    process: subprocess.Popen[str]
    address: str

    async def open(self, roster: ReplicaRoster, *, rank: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(rank, roster.model_dump_json(), file=self.process.stdin, flush=True)
        assert await asyncio.to_thread(self.process.stdout.readline) == "open\n"

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        self.process.kill()


@asynccontextmanager
async def a_peer(kind: str) -> AsyncIterator[PeerProcess]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.gpu_worker_peers.peer_process", kind],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = await asyncio.to_thread(process.stdout.readline)
        yield PeerProcess(process=process, address=address.strip())
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def both(fleet: Fleet, peer: PeerProcess) -> ReplicaRoster:
    """Place one replica of two shards on this process, its lead, and on the peer."""
    own = fleet.workers[0]
    return roster_of("both", (1, 2), [(own.worker_id, own.address), ("worker-1", peer.address)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fate", ["kill", "stop"])
async def test_a_lead_notices_that_a_member_is_gone(fleet: OpenFleet, kind: str, fate: str) -> None:
    async with fleet(1, kind, SILENCE) as workers, a_peer(kind) as peer:
        own = workers.workers[0]
        roster = both(workers, peer)
        await asyncio.gather(own.network.open_replica(roster, rank=0), peer.open(roster, rank=1))
        await own.network.send_plan("both", a_plan(1))
        gone_at_ns = time.monotonic_ns()
        getattr(peer, fate)()
        await own.host.until(own.host.lost)
        assert time.monotonic_ns() - gone_at_ns < 4 * NS_PER_S
        assert own.host.lost == [("both", "worker-1")]
        with pytest.raises(Unavailable, match="worker-1"):
            await own.network.send_plan("both", a_plan(2))


@pytest.mark.parametrize("fate", ["kill", "stop"])
async def test_a_target_that_dies_while_kv_is_copied_ends_the_copy(
    fleet: OpenFleet, fate: str
) -> None:
    async with fleet(1, "tcp", SILENCE) as workers, a_peer("tcp") as peer:
        own = workers.workers[0]
        source = workers.roster("source", (1, 1), [0])
        target = roster_of("target", (1, 1), [("worker-1", peer.address)], epoch=2)
        await workers.open(source)
        await workers.write(source, random_kv(seed=3))
        await peer.open(target, rank=0)
        own.memory.may_export.clear()
        copying = asyncio.create_task(
            own.network.copy_kv(
                source=source, target=target, ticket_id="copy-1", blocks=[(77, 0), (78, 1)]
            )
        )
        await own.memory.exporting.wait()
        gone_at_ns = time.monotonic_ns()
        getattr(peer, fate)()
        own.memory.may_export.set()
        summary = await copying
        assert (summary.end, summary.blocks_moved) == (KvCopyEnd.PEER_LOST, 0)
        assert summary.blocks_left == 2
        assert time.monotonic_ns() - gone_at_ns < 5 * NS_PER_S


async def test_a_rank_of_the_source_that_dies_ends_the_copy_and_frees_what_was_reserved(
    fleet: OpenFleet,
) -> None:
    async with fleet(1, "tcp", SILENCE) as workers, a_peer("tcp") as peer:
        own = workers.workers[0]
        source = both(workers, peer)
        target = workers.roster("target", (1, 1), [0], epoch=2)
        await workers.open(target)
        own.memory.hold("both", layers=range(5), heads=range(2))
        await asyncio.gather(own.network.open_replica(source, rank=0), peer.open(source, rank=1))
        own.memory.may_export.clear()
        copying = asyncio.create_task(
            own.network.copy_kv(
                source=source, target=target, ticket_id="copy-1", blocks=[(77, 0), (78, 1)]
            )
        )
        await own.memory.exporting.wait()
        peer.kill()
        own.memory.may_export.set()
        summary = await copying
        await own.host.until(own.host.dropped)
        assert (summary.end, summary.blocks_moved) == (KvCopyEnd.PEER_LOST, 0)
        assert own.host.committed == {}
        assert sorted(own.host.free) == list(range(BLOCKS))

"""What a lead asks of its members beside plans: to yield, and to copy to host memory and back."""

import pytest
import torch

from libs.contracts.handover import ReplicaRoster
from libs.contracts.peers import LoadFromHost, StoreToHost
from libs.kernel.errors import Unavailable
from tests.integration.gpu_worker_peers.conftest import OpenFleet
from tests.integration.gpu_worker_peers.fleet import Fleet, Worker
from tests.integration.gpu_worker_peers.kv_memory import HOST_SLOTS, random_kv
from tests.integration.gpu_worker_peers.plans import a_plan

STORE = StoreToHost(copy_id="replica-1.store-1")
LOAD = LoadFromHost(copy_id="replica-1.load-2")
BLOCKS_TO_SLOTS = ((3, 0), (7, 5), (11, 1))
SLOTS_TO_BLOCKS = ((5, 20), (0, 21), (1, 22))
"""What these bring back: block 7 to 20, 3 to 21, 11 to 22."""


async def a_replica(fleet: Fleet, shape: tuple[int, int] = (2, 2)) -> ReplicaRoster:
    roster = fleet.roster("replica-1", shape, range(shape[0] * shape[1]))
    await fleet.open(roster)
    return roster


def members(fleet: Fleet, roster: ReplicaRoster) -> list[Worker]:
    return [worker for worker in fleet.workers if worker is not fleet.lead(roster)]


async def test_every_member_hears_which_step_shall_yield(fleet: OpenFleet, kind: str) -> None:
    async with fleet(4, kind) as workers:
        roster = await a_replica(workers)
        lead = workers.lead(roster)
        await lead.network.ask_to_yield("replica-1", 41)
        # A plan behind it shows that it has arrived.
        await lead.network.send_plan("replica-1", a_plan(42))
        for member in members(workers, roster):
            await member.host.until(member.host.plans)
            assert member.memory.yields == [("replica-1", 41)]
        assert lead.memory.yields == []


async def test_every_member_keeps_its_own_part_under_the_slots_of_the_lead(
    fleet: OpenFleet, kind: str
) -> None:
    async with fleet(4, kind) as workers:
        roster = await a_replica(workers)
        kv_LBT2KD = random_kv(seed=1)
        await workers.write(roster, kv_LBT2KD)
        network = workers.lead(roster).network
        assert await network.copy_host("replica-1", STORE, BLOCKS_TO_SLOTS) == ()
        assert await network.copy_host("replica-1", LOAD, SLOTS_TO_BLOCKS) == ()
        differing = workers.differing(roster, kv_LBT2KD, [(7, 20), (3, 21), (11, 22)])
        lead_rank = roster.workers.index(roster.lead)  # type: ignore[arg-type]
        # The lead copies by itself, and was not asked to here.
        assert {rank for rank, _ in differing} == {lead_rank}


async def test_a_slot_that_one_member_finds_changed_is_reported(fleet: OpenFleet) -> None:
    async with fleet(4) as workers:
        roster = await a_replica(workers)
        await workers.write(roster, random_kv(seed=2))
        network = workers.lead(roster).network
        await network.copy_host("replica-1", STORE, BLOCKS_TO_SLOTS)
        victim = members(workers, roster)[1].memory
        victim.host["replica-1"]._slots_SLE[5, 0, 0] += 1.0
        before = victim.positions["replica-1"].gather_blocks([20])
        assert await network.copy_host("replica-1", LOAD, SLOTS_TO_BLOCKS) == (5,)
        assert torch.equal(victim.positions["replica-1"].gather_blocks([20]), before)


async def test_a_member_that_cannot_copy_fails_the_copy_and_stays(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        roster = await a_replica(workers, (1, 2))
        network = workers.lead(roster).network
        with pytest.raises(Unavailable, match="no such slots"):
            await network.copy_host("replica-1", STORE, [(0, HOST_SLOTS)])
        assert await network.copy_host("replica-1", STORE, [(0, HOST_SLOTS - 1)]) == ()


async def test_a_member_that_is_lost_fails_the_copy_at_once(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        roster = await a_replica(workers, (1, 2))
        lead = workers.lead(roster)
        (member,) = members(workers, roster)
        await member.network.stop()
        with pytest.raises(Unavailable):
            await lead.network.copy_host("replica-1", STORE, [(0, 0)])

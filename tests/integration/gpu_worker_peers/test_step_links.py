"""Plans reach every member in order, and each end learns in bounded time that the other is gone."""

import asyncio
import time
from dataclasses import replace

import pytest

from libs.contracts.handover import ReplicaRoster
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.transfer.loopback import LoopbackFaults, LoopbackTransport
from services.gpu_worker.peers.ports import PeerOptions
from tests.integration.gpu_worker_peers.conftest import OpenFleet
from tests.integration.gpu_worker_peers.fleet import Fleet, Worker
from tests.integration.gpu_worker_peers.plans import a_plan

IMPATIENT = PeerOptions(
    alive_ns=20 * NS_PER_MS, silence_ns=200 * NS_PER_MS, opening_ns=400 * NS_PER_MS
)


async def a_replica(fleet: Fleet, shape: tuple[int, int] = (2, 2)) -> ReplicaRoster:
    roster = fleet.roster("replica-1", shape, range(shape[0] * shape[1]))
    await fleet.open(roster)
    return roster


def faults_of(worker: Worker) -> LoopbackFaults:
    """Return what can go wrong on the way to this worker."""
    assert isinstance(worker.transport, LoopbackTransport)
    return worker.transport.listener_at(worker.address).faults


async def test_plans_reach_every_member_whole_and_in_order(fleet: OpenFleet, kind: str) -> None:
    async with fleet(4, kind) as workers:
        roster = await a_replica(workers)
        lead = workers.lead(roster)
        assert lead.worker_id == "worker-2"
        plans = [a_plan(step_id, sequences=step_id % 70 + 1) for step_id in range(100)]
        for plan in plans:
            await lead.network.send_plan("replica-1", plan)
        for worker in workers.workers:
            if worker is lead:
                assert worker.host.plans == []
                continue
            await worker.host.until(worker.host.plans, count=100)
            assert worker.host.plans == plans


async def test_a_plan_with_a_long_prompt_passes(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        roster = await a_replica(workers, (1, 2))
        plan = a_plan(1)
        request = replace(plan.opened[0], prompt_token_ids=tuple(range(128_000)))
        plan = replace(plan, opened=(request,))
        await workers.lead(roster).network.send_plan("replica-1", plan)
        await workers.workers[1].host.until(workers.workers[1].host.plans)
        assert workers.workers[1].host.plans == [plan]


async def test_a_lead_alone_sends_plans_to_nobody(fleet: OpenFleet) -> None:
    async with fleet(1) as workers:
        await a_replica(workers, (1, 1))
        await workers.workers[0].network.send_plan("replica-1", a_plan(1))


async def test_a_lead_waits_for_a_member_that_is_told_later(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        roster = workers.roster("replica-1", (1, 2), [0, 1])
        opening = asyncio.create_task(workers.workers[0].network.open_replica(roster, rank=0))
        await asyncio.sleep(0.12)
        assert not opening.done()
        await workers.workers[1].network.open_replica(roster, rank=1)
        await opening
        await workers.workers[0].network.send_plan("replica-1", a_plan(1))
        await workers.workers[1].host.until(workers.workers[1].host.plans)


async def test_a_member_that_never_opens_is_an_error_in_bounded_time(fleet: OpenFleet) -> None:
    async with fleet(2, options=IMPATIENT) as workers:
        roster = workers.roster("replica-1", (1, 2), [0, 1])
        with pytest.raises(Unavailable, match="worker-1 did not open replica-1"):
            await workers.workers[0].network.open_replica(roster, rank=0)
        with pytest.raises(Unavailable):
            await workers.workers[0].network.send_plan("replica-1", a_plan(1))


async def test_opening_twice_keeps_the_links(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        roster = await a_replica(workers, (1, 2))
        for rank, worker in enumerate(workers.workers):
            await worker.network.open_replica(roster, rank=rank)
        await workers.lead(roster).network.send_plan("replica-1", a_plan(1))
        await workers.workers[1].host.until(workers.workers[1].host.plans)
        assert [worker.host.lost for worker in workers.workers] == [[], []]


async def test_a_lead_of_an_older_epoch_is_refused(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        old = workers.roster("replica-1", (1, 2), [0, 1], epoch=1)
        new = workers.roster("replica-1", (1, 2), [0, 1], epoch=2)
        await workers.workers[1].network.open_replica(new, rank=1)
        with pytest.raises(Unavailable, match="stale_epoch"):
            await workers.workers[0].network.open_replica(old, rank=0)


async def test_a_newer_epoch_replaces_the_replica(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        await a_replica(workers, (1, 2))
        await workers.open(workers.roster("replica-1", (1, 2), [0, 1], epoch=2))
        await workers.workers[0].network.send_plan("replica-1", a_plan(9))
        await workers.workers[1].host.until(workers.workers[1].host.plans)
        assert workers.workers[1].host.plans == [a_plan(9)]


async def test_both_ends_learn_once_that_their_link_was_cut(fleet: OpenFleet) -> None:
    async with fleet(4) as workers:
        roster = await a_replica(workers)
        lead, member = workers.lead(roster), workers.workers[1]
        assert isinstance(member.transport, LoopbackTransport)
        member.transport.listener_at(member.address).cut()
        await lead.host.until(lead.host.lost)
        await member.host.until(member.host.lost)
        with pytest.raises(Unavailable, match="worker-1"):
            await lead.network.send_plan("replica-1", a_plan(1))
        assert lead.host.lost == [("replica-1", "worker-1")]
        assert member.host.lost == [("replica-1", "worker-2")]
        assert workers.workers[0].host.lost == []


async def test_both_ends_notice_a_frozen_link_though_nobody_sends_a_plan(
    fleet: OpenFleet,
) -> None:
    async with fleet(2, options=IMPATIENT) as workers:
        roster = await a_replica(workers, (1, 2))
        lead, member = workers.lead(roster), workers.workers[1]
        faults_of(member).freeze()
        started_at_ns = time.monotonic_ns()
        await lead.host.until(lead.host.lost)
        await member.host.until(member.host.lost)
        faults_of(member).thaw()
        assert time.monotonic_ns() - started_at_ns < 2 * NS_PER_S


async def test_a_quiet_link_is_not_taken_for_a_dead_one(fleet: OpenFleet) -> None:
    async with fleet(2, options=IMPATIENT) as workers:
        roster = await a_replica(workers, (1, 2))
        lead, member = workers.lead(roster), workers.workers[1]
        await asyncio.sleep(0.5)
        await lead.network.send_plan("replica-1", a_plan(1))
        await member.host.until(member.host.plans)
        assert (lead.host.lost, member.host.lost) == ([], [])
        assert 0 < lead.network.round_trips_ns("replica-1")["worker-1"] < NS_PER_S


async def test_a_member_that_fails_tells_its_lead(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        roster = await a_replica(workers, (1, 2))
        await workers.workers[1].network.report_failure("replica-1", "out of memory")
        lead = workers.lead(roster)
        await lead.host.until(lead.host.lost)
        assert lead.host.lost == [("replica-1", "worker-1")]


async def test_who_closes_a_replica_hears_no_more_of_it(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        roster = await a_replica(workers, (1, 2))
        lead, member = workers.lead(roster), workers.workers[1]
        await lead.network.close_replica("replica-1")
        await member.host.until(member.host.lost)
        assert lead.host.lost == []
        with pytest.raises(Unavailable):
            await lead.network.send_plan("replica-1", a_plan(1))


async def test_a_replica_that_is_closed_while_its_lead_waits_is_linked_no_more(
    fleet: OpenFleet,
) -> None:
    async with fleet(2) as workers:
        roster = workers.roster("replica-1", (1, 2), [0, 1])
        lead, member = workers.workers
        opening = asyncio.create_task(lead.network.open_replica(roster, rank=0))
        await asyncio.sleep(0.02)
        await lead.network.close_replica("replica-1")
        await member.network.open_replica(roster, rank=1)
        with pytest.raises(Unavailable):
            await opening
        assert member.host.lost == []

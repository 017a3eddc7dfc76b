"""KV goes between replicas of any two shapes, each wanted block once, and nothing late is kept."""

import asyncio
import time
from dataclasses import replace
from itertools import product

import pytest
import torch

from libs.contracts.handover import ReplicaRoster
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.transfer.loopback import LoopbackTransport
from services.gpu_worker.peers.ports import KvCopyEnd, KvCopySummary, PeerOptions
from tests.integration.gpu_worker_peers.conftest import OpenFleet
from tests.integration.gpu_worker_peers.fleet import Fleet
from tests.integration.gpu_worker_peers.kv_memory import random_kv
from tests.integration.gpu_worker_peers.shapes import (
    CELL_BYTES,
    MODEL_BLOCK_BYTES,
    rectangles,
)

SHAPES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4)]
OFFERED = [(1000 + block, block) for block in range(3, 13)]
TWO_BLOCKS_A_BATCH = PeerOptions(batch_bytes_max=2 * MODEL_BLOCK_BYTES)


def replica_block_bytes(shape: tuple[int, int]) -> int:
    """Return what one block takes on all ranks together."""
    return CELL_BYTES * sum(len(layers) * len(heads) for layers, heads in rectangles(*shape))


async def a_pair(
    fleet: Fleet, source_shape: tuple[int, int] = (1, 1), target_shape: tuple[int, int] = (1, 1)
) -> tuple[ReplicaRoster, ReplicaRoster, torch.Tensor]:
    """Open a source full of KV and an empty target, on workers of their own."""
    sources, targets = source_shape[0] * source_shape[1], target_shape[0] * target_shape[1]
    source = fleet.roster("source", source_shape, range(sources))
    target = fleet.roster("target", target_shape, range(sources, sources + targets), epoch=2)
    await fleet.open(source)
    await fleet.open(target)
    kv = random_kv(seed=1)
    await fleet.write(source, kv)
    return source, target, kv


async def copy(
    fleet: Fleet,
    source: ReplicaRoster,
    target: ReplicaRoster,
    *,
    ticket_id: str = "copy-1",
    deadline_at_ns: int | None = None,
) -> KvCopySummary:
    return await fleet.lead(source).network.copy_kv(
        source=source,
        target=target,
        ticket_id=ticket_id,
        blocks=OFFERED,
        deadline_at_ns=deadline_at_ns,
    )


def committed_blocks(fleet: Fleet, target: ReplicaRoster) -> list[tuple[int, int]]:
    """Return pairs of source and target block, in the order of their commits."""
    source_blocks = dict(OFFERED)
    committed = fleet.lead(target).host.committed
    return [(source_blocks[block_hash], block) for block_hash, block in committed.items()]


@pytest.mark.parametrize(("source_shape", "target_shape"), list(product(SHAPES, SHAPES)), ids=str)
async def test_every_block_arrives_whole_between_any_two_shapes(
    fleet: OpenFleet, source_shape: tuple[int, int], target_shape: tuple[int, int]
) -> None:
    async with fleet(8) as workers:
        source, target, kv = await a_pair(workers, source_shape, target_shape)
        summary = await copy(workers, source, target)
        assert summary.end is KvCopyEnd.COMPLETE, summary.message
        assert list(workers.lead(target).host.committed) == [each for each, _ in OFFERED]
        assert workers.differing(target, kv, committed_blocks(workers, target)) == []
        assert summary.bytes_planned == len(OFFERED) * replica_block_bytes(target_shape)
        assert summary.bytes_moved == summary.bytes_planned
        assert (summary.blocks_moved, summary.blocks_left) == (len(OFFERED), 0)


async def test_blocks_arrive_whole_over_every_transport(fleet: OpenFleet, kind: str) -> None:
    async with fleet(4, kind) as workers:
        source, target, kv = await a_pair(workers, (2, 1), (1, 2))
        summary = await copy(workers, source, target)
        assert summary.end is KvCopyEnd.COMPLETE, summary.message
        assert workers.differing(target, kv, committed_blocks(workers, target)) == []


async def test_a_block_that_differs_is_noticed(fleet: OpenFleet) -> None:
    async with fleet(3) as workers:
        source, target, kv = await a_pair(workers, (1, 1), (1, 2))
        await copy(workers, source, target)
        kv[0, OFFERED[0][1], 0, 0, 0, 0] += 1.0
        differing = workers.differing(target, kv, committed_blocks(workers, target))
        assert [rank for rank, _ in differing] == [0]


async def test_a_block_that_is_offered_twice_is_sent_once(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        source, target, _ = await a_pair(workers)
        await copy(workers, source, target, ticket_id="copy-1")
        again = await copy(workers, source, target, ticket_id="copy-2")
        assert again.end is KvCopyEnd.COMPLETE
        assert (again.bytes_planned, again.bytes_moved, again.blocks_moved) == (0, 0, 0)
        assert workers.lead(target).host.dropped == ["copy-1", "copy-2"]


async def test_a_rank_copies_to_itself_in_memory(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        source = workers.roster("source", (1, 1), [0])
        target = workers.roster("target", (1, 2), [1, 0], epoch=2)
        await workers.open(source)
        await workers.open(target)
        kv = random_kv(seed=2)
        await workers.write(source, kv)
        summary = await copy(workers, source, target)
        assert workers.differing(target, kv, committed_blocks(workers, target)) == []
        half = len(OFFERED) * MODEL_BLOCK_BYTES // 2
        assert (summary.bytes_moved, summary.bytes_copied_here) == (half, half)


async def test_a_target_takes_no_more_than_it_has_room_for(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        source, target, kv = await a_pair(workers)
        workers.lead(target).host.free = [7, 8, 9]
        summary = await copy(workers, source, target)
        assert (summary.end, summary.blocks_moved) == (KvCopyEnd.COMPLETE, 3)
        assert list(workers.lead(target).host.committed) == [each for each, _ in OFFERED[:3]]
        assert workers.differing(target, kv, committed_blocks(workers, target)) == []


@pytest.mark.parametrize("changes", [{"replica_epoch": 3}, {"replica_id": "other"}], ids=str)
async def test_a_target_that_is_not_open_under_this_epoch_refuses(
    fleet: OpenFleet, changes: dict[str, object]
) -> None:
    async with fleet(2) as workers:
        source, target, _ = await a_pair(workers)
        summary = await copy(workers, source, target.model_copy(update=changes))
        assert summary.end is KvCopyEnd.REFUSED
        assert workers.lead(target).host.reserved == {}


async def test_a_dead_rank_whose_heads_nobody_else_holds_ends_the_copy(fleet: OpenFleet) -> None:
    async with fleet(3) as workers:
        source, target, _ = await a_pair(workers, (1, 2), (1, 1))
        maimed = source.model_copy(update={"workers": source.workers[:1]})
        summary = await copy(workers, maimed, target)
        assert (summary.end, summary.bytes_moved) == (KvCopyEnd.PEER_LOST, 0)


async def test_a_dead_rank_whose_heads_another_one_holds_is_not_missed(fleet: OpenFleet) -> None:
    async with fleet(9) as workers:
        source, target, kv = await a_pair(workers, (1, 8), (1, 1))
        maimed = source.model_copy(
            update={"workers": tuple(each for each in source.workers if each.shard != 3)}
        )
        summary = await copy(workers, maimed, target)
        assert summary.end is KvCopyEnd.COMPLETE, summary.message
        assert workers.differing(target, kv, committed_blocks(workers, target)) == []


async def test_blocks_go_to_nobody_else_while_something_late_is_being_stored(
    fleet: OpenFleet,
) -> None:
    async with fleet(3) as workers:
        source, target, _ = await a_pair(workers, (1, 1), (1, 2))
        lead, member = workers.lead(target), workers.workers[2]
        member.memory.may_import.clear()
        summary = await copy(
            workers, source, target, deadline_at_ns=time.monotonic_ns() + 200 * NS_PER_MS
        )
        assert (summary.end, summary.blocks_moved) == (KvCopyEnd.DEADLINE, 0)
        assert summary.blocks_left == len(OFFERED)
        assert lead.host.dropped == [], "the member's engine has not stored what it has begun"
        member.memory.may_import.set()
        await lead.host.until(lead.host.dropped)
        imports = member.memory.imports
        again = await copy(workers, source, target, ticket_id="copy-2")
        assert again.end is KvCopyEnd.COMPLETE
        assert member.memory.imports == imports + 1, "nothing of the first copy came later"


async def test_what_was_committed_before_the_deadline_stays(fleet: OpenFleet) -> None:
    async with fleet(2, options=TWO_BLOCKS_A_BATCH) as workers:
        source, target, kv = await a_pair(workers)
        host = workers.lead(target).host
        copying = asyncio.create_task(
            copy(workers, source, target, deadline_at_ns=time.monotonic_ns() + 400 * NS_PER_MS)
        )
        while not host.committed:
            await asyncio.sleep(0)
        workers.lead(target).memory.may_import.clear()
        summary = await copying
        workers.lead(target).memory.may_import.set()
        await host.until(host.dropped)
        assert summary.end is KvCopyEnd.DEADLINE
        assert 0 < summary.blocks_moved < len(OFFERED)
        assert summary.bytes_moved == summary.blocks_moved * MODEL_BLOCK_BYTES
        assert len(host.committed) == summary.blocks_moved
        rest = await copy(workers, source, target, ticket_id="copy-2")
        assert summary.blocks_moved + rest.blocks_moved == len(OFFERED)
        assert workers.differing(target, kv, committed_blocks(workers, target)) == []


@pytest.mark.parametrize("messages", [4, 7, 10, 15, 22])
async def test_a_copy_that_is_cut_leaves_what_was_committed_and_can_be_repeated(
    fleet: OpenFleet, messages: int
) -> None:
    async with fleet(2, options=TWO_BLOCKS_A_BATCH) as workers:
        source, target, kv = await a_pair(workers)
        lead = workers.lead(target)
        assert isinstance(lead.transport, LoopbackTransport)
        lead.transport.listener_at(lead.address).faults.messages_until_cut = messages
        cut = await copy(workers, source, target)
        assert cut.end is KvCopyEnd.PEER_LOST
        await lead.host.until(lead.host.dropped)
        assert cut.blocks_moved <= len(lead.host.committed) < len(OFFERED)
        rest = await copy(workers, source, target, ticket_id="copy-2")
        assert rest.end is KvCopyEnd.COMPLETE, rest.message
        assert workers.differing(target, kv, committed_blocks(workers, target)) == []


async def test_a_frozen_target_ends_the_copy_in_bounded_time(fleet: OpenFleet) -> None:
    options = replace(PeerOptions(), answer_ns=200 * NS_PER_MS, batch_ns=300 * NS_PER_MS)
    async with fleet(2, options=options) as workers:
        source, target, _ = await a_pair(workers)
        lead = workers.lead(target)
        assert isinstance(lead.transport, LoopbackTransport)
        faults = lead.transport.listener_at(lead.address).faults
        faults.freeze()
        started_at_ns = time.monotonic_ns()
        summary = await copy(workers, source, target)
        faults.thaw()
        assert summary.end is KvCopyEnd.PEER_LOST
        assert time.monotonic_ns() - started_at_ns < 5 * NS_PER_S


async def test_a_closed_replica_ends_its_copies_and_hears_no_more_of_them(
    fleet: OpenFleet,
) -> None:
    async with fleet(2, options=TWO_BLOCKS_A_BATCH) as workers:
        source, target, _ = await a_pair(workers)
        lead = workers.lead(target)
        lead.memory.may_import.clear()
        copying = asyncio.create_task(copy(workers, source, target))
        while not lead.host.reserved:
            await asyncio.sleep(0)
        closing = asyncio.create_task(lead.network.close_replica("target"))
        lead.memory.may_import.set()
        await closing
        assert lead.host.dropped == ["copy-1"]
        committed = dict(lead.host.committed)
        summary = await copying
        assert summary.end in (KvCopyEnd.PEER_LOST, KvCopyEnd.REFUSED)
        assert lead.host.committed == committed
        assert lead.host.dropped == ["copy-1"]


async def test_links_are_made_ahead_and_one_to_nobody_harms_nobody(fleet: OpenFleet) -> None:
    async with fleet(2) as workers:
        source, target, kv = await a_pair(workers)
        own, lead = workers.workers
        own.network.connect_ahead([lead.address, "loopback://fleet/99"])
        await asyncio.sleep(0)
        summary = await copy(workers, source, target)
        assert summary.end is KvCopyEnd.COMPLETE, summary.message
        assert workers.differing(target, kv, committed_blocks(workers, target)) == []

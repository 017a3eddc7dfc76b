"""Workers that die, freeze or are told to give up in the middle of it."""

import asyncio
import signal
from typing import Any

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    ReleaseSessions,
    ResumeReplica,
    ShapeFailed,
    ShapeFailReason,
    StopReplica,
)

STREAMS = 4
BLOCK_TOKENS = 16
STRIKE_AFTER_TOKENS = 30


async def test_kv_goes_first_and_weights_afterwards(fleet: Any) -> None:
    """As the policy spotserve does it: what is copied waits in a position without weights."""
    async with fleet.running(2):
        migrator = fleet.migrator
        ids = await migrator.workers(2)
        source = migrator.roster("before", ids[0])
        await migrator.serve(source)
        undisturbed = await fleet.undisturbed(STREAMS)
        answers = fleet.start_answers(STREAMS)
        await fleet.until_tokens(answers, STRIKE_AFTER_TOKENS)
        migrator.revision += 1
        target = migrator.roster("after", ids[0], ids[1], stages=2)
        staged = await migrator.stage(target)
        stopped = await migrator.done(ids[0], StopReplica, source=source, targets=(target,))
        assert stopped.blocks_moved > 0
        assert stopped.tokens_uncopied < STREAMS * BLOCK_TOKENS
        load = {"holders": (source,), "targets": (target,)}
        await migrator.all_done(target, LoadWeights, replica_id=target.replica_id, **load)
        rendezvous, kv_blocks = staged[target.replica_id]
        form = {"rendezvous": rendezvous, "kv_blocks": kv_blocks}
        await migrator.all_done(target, FormReplica, replica_id=target.replica_id, **form)
        await migrator.all_done(target, ActivateReplica, replica_id=target.replica_id)
        leads = {"target_worker_ids": (ids[1],)}
        await migrator.done(ids[0], ReleaseSessions, replica_id=source.replica_id, **leads)
        await migrator.all_done(source, DropReplica, replica_id=source.replica_id)
        assert await fleet.finished(answers) == undisturbed
        await migrator.until_report(ids[1], lambda report: report.sessions_running == 0)
        assert migrator.tokens_recomputed() == stopped.tokens_uncopied


async def test_an_abandoned_hand_over_costs_nothing_but_a_pause(fleet: Any) -> None:
    async with fleet.running(2):
        migrator = fleet.migrator
        ids = await migrator.workers(2)
        source = migrator.roster("before", ids[0])
        await migrator.serve(source)
        undisturbed = await fleet.undisturbed(STREAMS)
        answers = fleet.start_answers(STREAMS)
        await fleet.until_tokens(answers, STRIKE_AFTER_TOKENS)
        migrator.revision += 1
        target = migrator.roster("after", *ids, shards=2)
        await migrator.prepare(target, holders=[source])
        await migrator.done(ids[0], StopReplica, source=source, targets=(target,))
        migrator.revision += 1
        await migrator.done(ids[0], ResumeReplica, replica_id=source.replica_id)
        await migrator.all_done(target, DropReplica, replica_id=target.replica_id)
        assert await fleet.finished(answers) == undisturbed
        report = await migrator.until_report(ids[1], lambda report: report.weights_bytes == 0)
        assert report.position is None
        assert migrator.tokens_recomputed() == 0


async def test_a_replaced_migrator_is_refused(fleet: Any) -> None:
    async with fleet.running(1):
        migrator = fleet.migrator
        ids = await migrator.workers(1)
        roster = migrator.roster("replica", ids[0])
        await migrator.serve(roster)
        migrator.epoch -= 1
        for kind, fields in (
            (StopReplica, {"source": roster}),
            (DropReplica, {"replica_id": roster.replica_id}),
        ):
            answer = await migrator.ask(ids[0], kind, **fields)
            assert isinstance(answer, ShapeFailed)
            assert answer.reason is ShapeFailReason.STALE
        assert len((await fleet.undisturbed(1))[0]) > STRIKE_AFTER_TOKENS


async def test_a_member_killed_in_mid_step_breaks_its_replica_and_nothing_else(fleet: Any) -> None:
    async with fleet.running(3):
        migrator = fleet.migrator
        ids = await migrator.workers(3)
        pair = migrator.roster("pair", ids[0], ids[1], shards=2)
        single = migrator.roster("single", ids[2])
        await migrator.serve(single)
        undisturbed = await fleet.undisturbed(STREAMS)
        await migrator.done(ids[2], StopReplica, source=single)
        await migrator.serve(pair)
        answers = fleet.start_answers(STREAMS)
        await fleet.until_tokens(answers, STRIKE_AFTER_TOKENS)
        await migrator.done(ids[2], ResumeReplica, replica_id=single.replica_id)
        fleet.strike(ids[1], signal.SIGKILL)
        lead = ids[0]
        await migrator.until_report(lead, lambda r: r.position is not None and r.position.is_broken)
        assert await fleet.finished(answers) == undisturbed
        assert fleet.is_alive(lead)
        refused = await migrator.ask(lead, CopyKv, source=pair, targets=(single,))
        assert isinstance(refused, ShapeFailed)
        assert refused.reason is ShapeFailReason.BROKEN
        await migrator.done(lead, DropReplica, replica_id=pair.replica_id)
        migrator.revision += 1
        await migrator.serve(migrator.roster("again", lead))
        assert await fleet.undisturbed(STREAMS) == undisturbed


async def test_a_frozen_member_that_wakes_is_broken_too_and_can_be_used_again(fleet: Any) -> None:
    async with fleet.running(3):
        migrator = fleet.migrator
        ids = await migrator.workers(3)
        single = migrator.roster("single", ids[2])
        await migrator.serve(single)
        undisturbed = await fleet.undisturbed(STREAMS)
        await migrator.done(ids[2], StopReplica, source=single)
        pair = migrator.roster("pair", ids[0], ids[1], stages=2)
        await migrator.serve(pair)
        lead, member = ids[1], ids[0]
        answers = fleet.start_answers(STREAMS)
        await fleet.until_tokens(answers, STRIKE_AFTER_TOKENS)
        await migrator.done(ids[2], ResumeReplica, replica_id=single.replica_id)
        fleet.strike(member, signal.SIGSTOP)
        try:
            await migrator.until_report(
                lead, lambda r: r.position is not None and r.position.is_broken
            )
            assert await fleet.finished(answers) == undisturbed
        finally:
            fleet.strike(member, signal.SIGCONT)
        await migrator.until_report(
            member, lambda r: r.position is not None and r.position.is_broken
        )
        await migrator.all_done(pair, DropReplica, replica_id=pair.replica_id)
        migrator.revision += 1
        again = migrator.roster("again", ids[0], ids[1], shards=2)
        await migrator.hand_over([single], [again])
        assert await fleet.undisturbed(STREAMS) == undisturbed
        assert await asyncio.to_thread(fleet.is_alive, member)

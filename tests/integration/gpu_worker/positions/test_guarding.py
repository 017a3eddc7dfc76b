"""Sessions of a killed replica go on where their KV was copied to meanwhile, whatever its shape."""

import signal
from collections.abc import Iterator

import pytest

from libs.contracts.reports import WorkerReport
from tests.integration.gpu_worker.positions.conftest import Fleet, a_fleet, lead_of

STREAMS = 3
BLOCKS_GUARDED = 8
"""Of each stream, before its worker is killed."""
TOKENS_BEFORE = 16 * (BLOCKS_GUARDED + 1)


@pytest.fixture(scope="module")
def guarded_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Workers on nodes of their own, each of which copies its sessions' KV to another."""
    settings = {"GUARD_BYTES_PER_S": "100000000", "GROUP_TIMEOUT_MS": "3000"}
    with a_fleet(tmp_path_factory.mktemp("nats"), **settings) as fleet:
        yield fleet


async def share_computed_again(
    fleet: Fleet,
    *,
    stages: int,
    shards: int,
    guard_stages: int = 1,
    kills_lead: bool = True,
    is_guarded: bool = True,
) -> float:
    """Kill one worker of a replica that answers; return what share of its tokens was lost."""
    size = stages * shards
    async with fleet.running(size + guard_stages):
        migrator = fleet.migrator
        workers = await migrator.workers(size + guard_stages)
        victim = migrator.roster("one", *workers[:size], stages=stages, shards=shards)
        guard = migrator.roster("other", *workers[size:], stages=guard_stages)
        await migrator.serve(victim)
        undisturbed = await fleet.undisturbed(STREAMS)
        answers = fleet.start_answers(STREAMS)
        await fleet.until_tokens(answers, 1)
        await migrator.serve(guard)
        await fleet.until_tokens(answers, TOKENS_BEFORE)

        def has_copies(report: WorkerReport) -> bool:
            return len(report.prefix_hashes) >= STREAMS * BLOCKS_GUARDED

        if is_guarded:
            await migrator.until_report(lead_of(guard), has_copies)
        tokens_lost = sum(len(answer.tokens) for answer in answers)
        doomed = lead_of(victim) if kills_lead else workers[0]
        fleet.strike(doomed, signal.SIGKILL)
        assert await fleet.finished(answers) == undisturbed
        await migrator.until_report(lead_of(guard), lambda report: report.sessions_running == 0)
        assert migrator.tokens_recomputed() > 0
        return migrator.tokens_recomputed() / tokens_lost


async def test_a_killed_workers_sessions_are_computed_again_only_past_their_copies(
    guarded_fleet: Fleet,
) -> None:
    assert await share_computed_again(guarded_fleet, stages=1, shards=1) < 0.5


async def test_a_killed_stage_costs_only_what_came_past_the_copies(guarded_fleet: Fleet) -> None:
    share = await share_computed_again(guarded_fleet, stages=2, shards=1, kills_lead=False)
    assert share < 0.5


async def test_a_killed_shard_costs_only_what_came_past_the_copies(guarded_fleet: Fleet) -> None:
    assert await share_computed_again(guarded_fleet, stages=1, shards=2) < 0.5


async def test_a_replica_of_two_stages_guards_one_of_two_shards(guarded_fleet: Fleet) -> None:
    share = await share_computed_again(guarded_fleet, stages=1, shards=2, guard_stages=2)
    assert share < 0.5


async def test_without_a_budget_for_copies_all_of_it_is_computed_again(fleet: Fleet) -> None:
    share = await share_computed_again(fleet, stages=2, shards=1, is_guarded=False)
    assert share >= 1

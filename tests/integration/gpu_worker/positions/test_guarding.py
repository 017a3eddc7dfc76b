"""Sessions of a killed replica go on where their KV was copied to meanwhile."""

import os
import signal
from collections.abc import Iterator

import pytest

from libs.contracts.reports import WorkerReport
from libs.runtime.nats_server import NatsServer, ServerOptions
from libs.runtime.nats_server_search import find_nats_server
from tests.integration.gpu_worker.positions.conftest import Fleet, lead_of

STREAMS = 3
BLOCKS_GUARDED = 8
"""Of each stream, before its worker is killed."""
TOKENS_BEFORE = 16 * (BLOCKS_GUARDED + 1)


@pytest.fixture(scope="module")
def guarded_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Workers on nodes of their own, each of which copies its sessions' KV to another."""
    program = find_nats_server(environment=dict(os.environ), may_fetch=False)
    server = NatsServer(ServerOptions(data_folder=tmp_path_factory.mktemp("nats")), program=program)
    server.start()
    fleet = Fleet(server, GUARD_BYTES_PER_S="100000000", GROUP_TIMEOUT_MS="3000")
    yield fleet
    fleet.stop()
    server.stop()


async def share_computed_again(fleet: Fleet, *, shards: int) -> float:
    """Kill the lead of a replica that answers; return what share of its tokens was lost."""
    async with fleet.running(shards + 1):
        migrator = fleet.migrator
        workers = await migrator.workers(shards + 1)
        victim = migrator.roster("one", *workers[:shards], shards=shards)
        guard = migrator.roster("other", workers[shards])
        await migrator.serve(victim)
        undisturbed = await fleet.undisturbed(STREAMS)
        answers = fleet.start_answers(STREAMS)
        await fleet.until_tokens(answers, 1)
        await migrator.serve(guard)
        await fleet.until_tokens(answers, TOKENS_BEFORE)

        def has_copies(report: WorkerReport) -> bool:
            return len(report.prefix_hashes) >= STREAMS * BLOCKS_GUARDED

        await migrator.until_report(lead_of(guard), has_copies)
        tokens_lost = sum(len(answer.tokens) for answer in answers)
        fleet.strike(lead_of(victim), signal.SIGKILL)
        assert await fleet.finished(answers) == undisturbed
        await migrator.until_report(lead_of(guard), lambda report: report.sessions_running == 0)
        assert migrator.tokens_recomputed() > 0
        return migrator.tokens_recomputed() / tokens_lost


async def test_a_killed_workers_sessions_are_computed_again_only_past_their_copies(
    guarded_fleet: Fleet,
) -> None:
    assert await share_computed_again(guarded_fleet, shards=1) < 0.5


async def test_a_killed_shard_costs_only_what_came_past_the_copies(guarded_fleet: Fleet) -> None:
    assert await share_computed_again(guarded_fleet, shards=2) < 0.5

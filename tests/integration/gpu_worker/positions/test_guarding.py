"""A worker that is killed has its sessions go on where their KV was copied to meanwhile."""

import os
import signal
from collections.abc import Iterator

import pytest

from libs.runtime.nats_server import NatsServer, ServerOptions
from libs.runtime.nats_server_search import find_nats_server
from tests.integration.gpu_worker.positions.conftest import Fleet

STREAMS = 3
BLOCKS_GUARDED = 8
"""Of each stream, before its worker is killed."""
TOKENS_BEFORE = 16 * (BLOCKS_GUARDED + 1)


@pytest.fixture
def guarded_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two nodes, each of which copies its sessions' KV to the other."""
    program = find_nats_server(environment=dict(os.environ), may_fetch=False)
    server = NatsServer(ServerOptions(data_folder=tmp_path_factory.mktemp("nats")), program=program)
    server.start()
    fleet = Fleet(server, GUARD_BYTES_PER_S="100000000")
    yield fleet
    fleet.stop()
    server.stop()


async def test_a_killed_workers_sessions_are_computed_again_only_past_their_copies(
    guarded_fleet: Fleet,
) -> None:
    fleet = guarded_fleet
    async with fleet.running(2):
        migrator = fleet.migrator
        victim, guard = await migrator.workers(2)
        await migrator.serve(migrator.roster("one", victim))
        undisturbed = await fleet.undisturbed(STREAMS)
        answers = fleet.start_answers(STREAMS)
        await fleet.until_tokens(answers, 1)
        await migrator.serve(migrator.roster("other", guard))
        await fleet.until_tokens(answers, TOKENS_BEFORE)
        await migrator.until_report(
            guard, lambda report: len(report.prefix_hashes) >= STREAMS * BLOCKS_GUARDED
        )
        tokens_lost = sum(len(answer.tokens) for answer in answers)
        fleet.strike(victim, signal.SIGKILL)
        assert await fleet.finished(answers) == undisturbed
        await migrator.until_report(guard, lambda report: report.sessions_running == 0)
        # Without copies it would be all of them, and their prompts.
        assert 0 < migrator.tokens_recomputed() < tokens_lost / 2

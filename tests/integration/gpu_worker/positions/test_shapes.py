"""From one shape to another under streams that must not notice."""

from typing import Any

import pytest

STREAMS = 6
BLOCK_TOKENS = 16
STRIKE_AFTER_TOKENS = 30


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([(1, 1)], [(2, 1)]),
        ([(1, 1)], [(1, 2)]),
        ([(2, 2)], [(1, 2), (1, 2)]),
    ],
    ids=["pipeline", "tensor", "split"],
)
async def test_streams_go_on_unchanged_and_only_their_last_block_is_computed_again(
    fleet: Any, before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    workers = max(sum(p * m for p, m in shape) for shape in (before, after))
    async with fleet.running(workers):
        migrator = fleet.migrator
        ids = await migrator.workers(workers)
        sources = rosters(migrator, "before", before, ids)
        for source in sources:
            await migrator.serve(source)
        undisturbed = await fleet.undisturbed(STREAMS)
        answers = fleet.start_answers(STREAMS)
        await fleet.until_tokens(answers, STRIKE_AFTER_TOKENS)
        migrator.revision += 1
        targets = rosters(migrator, "after", after, ids)
        handed = await migrator.hand_over(sources, targets)
        assert sum(stop.sessions for stop in handed.stops) == STREAMS
        assert await fleet.finished(answers) == undisturbed
        assert sum(copy.blocks_moved for copy in handed.copies) > 0
        assert sum(stop.blocks_left for stop in handed.stops) == 0
        for load in handed.loads:
            assert load.bytes_planned == load.bytes_from_peers, "a peer has everything"
            assert load.bytes_from_disk == 0
        lead = targets[0].workers[-1].worker_id
        await migrator.until_report(lead, lambda report: report.sessions_running == 0)
        assert migrator.tokens_recomputed() <= STREAMS * BLOCK_TOKENS


async def test_sessions_move_to_a_replica_that_goes_on_computing_its_own(fleet: Any) -> None:
    async with fleet.running(3):
        migrator = fleet.migrator
        ids = await migrator.workers(3)
        ends, stays = rosters(migrator, "before", [(1, 1), (1, 2)], ids)
        await migrator.serve(ends)
        undisturbed = await fleet.undisturbed(STREAMS)
        await migrator.serve(stays)
        answers = fleet.start_answers(STREAMS)
        await fleet.until_tokens(answers, STRIKE_AFTER_TOKENS)
        copies, stops = await migrator.copy_and_stop([ends], [stays])
        await migrator.release_and_drop([ends], [stays])
        assert 0 < sum(stop.sessions for stop in stops) < STREAMS, "both had sessions"
        assert await fleet.finished(answers) == undisturbed
        assert sum(copy.blocks_moved for copy in copies) > 0
        assert sum(stop.blocks_left for stop in stops) == 0
        lead = stays.workers[0].worker_id
        await migrator.until_report(lead, lambda report: report.sessions_running == 0)
        assert migrator.tokens_recomputed() <= stops[0].sessions * BLOCK_TOKENS


def rosters(migrator: Any, name: str, shapes: list[tuple[int, int]], ids: list[str]) -> list[Any]:
    """Give the workers, in their order, to replicas of these shapes."""
    found, start = [], 0
    for number, (stages, shards) in enumerate(shapes):
        stop = start + stages * shards
        replica_id = f"{name}-{number}"
        found.append(migrator.roster(replica_id, *ids[start:stop], stages=stages, shards=shards))
        start = stop
    return found

"""A replica of several workers evicts offline sessions and goes on with them from host memory."""

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.integration.gpu_worker.positions.conftest import Fleet, a_fleet, lead_of

OFFLINE_STREAMS = 3
OFFLINE_TOKENS = 150
ONLINE_ROUNDS = 4
OFFLINE = {"priority": -1, "max_tokens": OFFLINE_TOKENS}
LONG_QUESTION = {"messages": [{"role": "user", "content": "tide " * 300}], "max_tokens": 4}
"""With its answer nearly all blocks of the small pool."""


@pytest.fixture
def metrics_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@pytest.fixture
def small_fleet(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[Fleet]:
    """Workers whose KV holds little; the first one shows its metrics."""
    settings = {"BLOCKS_TOTAL": "24", "CONTEXT_TOKENS_MAX": "360", "TTFT_SLO_MS": "100"}
    with a_fleet(tmp_path_factory.mktemp("nats"), **settings) as fleet:
        fleet.first_settings["METRICS_PORT"] = str(metrics_port)
        yield fleet


async def test_all_ranks_store_and_load_their_part_and_the_answers_are_the_same(
    small_fleet: Fleet, metrics_port: int
) -> None:
    fleet = small_fleet
    async with fleet.running(2):
        migrator = fleet.migrator
        ids = await migrator.workers(2)
        # The lead of one stage is its first shard.
        pair = migrator.roster("pair", *ids, shards=2)
        assert lead_of(pair) == ids[0]
        await migrator.serve(pair)
        undisturbed = await fleet.undisturbed(OFFLINE_STREAMS, **OFFLINE)
        answers = fleet.start_answers(OFFLINE_STREAMS, **OFFLINE)
        for index in range(ONLINE_ROUNDS):
            await fleet.until_tokens(answers, 5 + 15 * index)
            await fleet.undisturbed(1, **LONG_QUESTION)
        assert await fleet.finished(answers) == undisturbed
        shown = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
        counts = dict(line.rsplit(" ", 1) for line in shown.splitlines() if line[0] != "#")
        loaded = counts["tideserve_worker_checkpoint_blocks_loaded_total"]
        assert float(loaded) > 0, counts
        assert float(counts["tideserve_worker_checkpoint_blocks_corrupt_total"]) == 0

"""Both tides at once: batches without end and online streams while nodes leave, die and come.

Every line and every token is compared with what the same fleet answered undisturbed.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from tests.e2e.test_batches import (
    a_body,
    a_free_port,
    a_line,
    assert_each_line_is_answered_once_as_if_alone,
    direct_answers,
    ended,
    file_of,
    rows_of,
    submitted,
)
from tests.e2e.test_nodes_come_and_go import (
    MAX_TOKENS,
    QUESTIONS,
    STREAMS,
    ConstantLoad,
    Theatre,
    a_theatre,
)

NODES = 3
CHANGES = 3
"""A notice, a death, and two nodes that join, be it at once or one after the other."""
BATCH_LINES = 48
BATCHES_OPEN = 2
ATTEMPTS = 12

pytestmark = pytest.mark.timeout(600)


@dataclass
class Backlog:
    """Keeps batches open until it is told to stop, and waits for the end of them all."""

    client: openai.AsyncOpenAI
    batch_ids: list[str] = field(default_factory=list)
    is_stopping: bool = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as batches:
            for _ in range(BATCHES_OPEN):
                batches.create_task(self._one_after_another())

    async def _one_after_another(self) -> None:
        content = file_of([a_line(f"line-{n}", a_body(n)) for n in range(BATCH_LINES)])
        while not self.is_stopping:
            batch = await submitted(self.client, content)
            self.batch_ids.append(batch.id)
            assert (await ended(self.client, batch.id)).status == "completed"


async def nodes_come_and_go(theatre: Theatre) -> None:
    await theatre.preempt(grace_ms=20_000)
    await theatre.becomes(NODES - 1, 1, 1)
    await theatre.kill()
    await theatre.becomes(NODES - 2, 1, 1)
    # Both start meanwhile; one after the other, each would start beside a fleet under full load.
    await theatre.add()
    await theatre.add()
    await theatre.becomes(NODES, 1, 1)


async def both_tides(folder: Path) -> None:
    port = a_free_port()
    async with (
        a_theatre(
            folder,
            transport="tcp",
            nodes=NODES,
            gateways=1,
            http_port=port,
            offline_queues=2,
            queue_settings={"lease_s": "5"},
        ) as theatre,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=ATTEMPTS
        ) as client,
    ):
        await theatre.pin(1, 1)
        await theatre.becomes(NODES, 1, 1)
        alone = await direct_answers(client)
        undisturbed = await asyncio.gather(*(theatre.ask(number) for number in range(QUESTIONS)))
        load, backlog = ConstantLoad(theatre.client, theatre.fleet.alias), Backlog(client)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            tasks.create_task(backlog.run())
            try:
                await nodes_come_and_go(theatre)
            finally:
                load.is_stopping = backlog.is_stopping = True
        for number, answer in load.answers:
            assert answer == undisturbed[number], f"the answer to question {number} has changed"
            assert len(answer[0]) == MAX_TOKENS
        for batch_id in backlog.batch_ids:
            batch = await client.batches.retrieve(batch_id)
            rows = await rows_of(client, batch.output_file_id)
            assert_each_line_is_answered_once_as_if_alone(rows, BATCH_LINES, alone)
            assert batch.error_file_id is None
        stories = (await theatre.handovers()).ended
        released = sum(story.totals.sessions_released for story in stories)
        print(
            f"{len(load.answers)} streams and {len(backlog.batch_ids)} batches of {BATCH_LINES}"
            f" lines, all exact; {len(stories)} hand-overs moved {released} sessions"
        )
        assert len(load.answers) >= 2 * STREAMS
        assert len(backlog.batch_ids) >= BATCHES_OPEN
        assert len(stories) >= CHANGES


def test_no_line_and_no_token_is_lost_while_nodes_leave_die_and_come(tmp_path: Path) -> None:
    asyncio.run(both_tides(tmp_path))

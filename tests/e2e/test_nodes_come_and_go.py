"""Real nodes come and go under constant load; the fleet changes its shape and no client notices.

Every answer of the run is compared, token for token, with what the same fleet answered undisturbed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.client.client import TideClient
from libs.contracts import subjects
from libs.contracts.handover_record import HANDOVER_RECORDS, HandoverRecord
from libs.contracts.local_cloud import AddNode, CloudDone, KillNode, PreemptNode
from libs.contracts.placement import PinnedShape, PinShape, Policy
from libs.runtime.nats_bus import NatsBus
from services.launcher.demo_timeline import shape_of
from services.launcher.fleet import Fleet
from services.launcher.local_cloud import LocalCloud
from services.launcher.model_source import bundled_model
from services.launcher.recipes import FleetOptions, PlannedOptions
from services.launcher.shape import pin_shape
from services.migrator.ports import BUCKET_BYTES_MAX

NODES = 4
STREAMS = 8
QUESTIONS = 12
MAX_TOKENS = 160
BLOCK_TOKENS = 16
"""Of a worker that is told nothing else."""
SHAPE_DEADLINE_S = 60.0
RUN_DEADLINE_S = 240.0

Answer = tuple[tuple[int, ...], str | None]


def parameters_of(number: int) -> dict[str, Any]:
    """Half greedy, half seeded; the number alone decides the answer."""
    sampling: dict[str, Any] = {"temperature": 0.0}
    if number % 2:
        sampling = {"temperature": 0.9, "top_p": 0.95, "seed": 1000 + number}
    question = f"What does method number {number} of str do?"
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        **sampling,
    }


async def ask(client: TideClient, alias: str, number: int) -> Answer:
    stream = client.stream(model=alias, **parameters_of(number))
    token_ids: list[int] = []
    async with stream:
        async for token in stream:
            assert token.index == len(token_ids), "a token was repeated or skipped"
            token_ids.append(token.token_id)
    return tuple(token_ids), stream.finish_reason


@dataclass
class ConstantLoad:
    """Keeps as many streams open as it is told, until stopped, and remembers every answer."""

    client: TideClient
    alias: str
    questions: int | None = QUESTIONS
    """None: none is asked twice, so that no replica has cached the answer."""
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    is_stopping: bool = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as streams:
            for first in range(STREAMS):
                streams.create_task(self._one_after_another(first))

    async def _one_after_another(self, number: int) -> None:
        while not self.is_stopping:
            question = number if self.questions is None else number % self.questions
            answer = await ask(self.client, self.alias, question)
            self.answers.append((question, answer))
            number += STREAMS + 1


@dataclass
class Theatre:
    """A planned fleet on which a script is played."""

    fleet: Fleet
    cloud: LocalCloud
    bus: NatsBus
    client: TideClient
    operations: int = 0

    async def becomes(self, replicas: int, stages: int, shards: int) -> None:
        """Wait until the fleet serves as D replicas of P stages x M shards, and no hand-over is
        under way."""
        wanted = f"{replicas} x (P{stages} M{shards})"
        view = self.fleet.view
        try:
            async with asyncio.timeout(SHAPE_DEADLINE_S):
                while shape_of(view.workers()) != wanted or not self._is_settled():
                    await view.wait_for_change()
        except TimeoutError:
            seen = shape_of(view.workers())
            raise AssertionError(f"the fleet serves as {seen or 'nothing'}, not {wanted}") from None

    def _is_settled(self) -> bool:
        planners = [report for report in self.fleet.view.planners() if report.is_leader]
        migrators = [report for report in self.fleet.view.migrators() if report.is_owner]
        return bool(planners and migrators) and all(
            report.plan_revision_reached >= planners[0].plan_revision for report in migrators
        )

    async def pin(self, stages: int, shards: int) -> None:
        pin = PinShape(shape=PinnedShape(stages=stages, shards=shards))
        await pin_shape(self.bus, pin, alias=self.fleet.alias)

    async def preempt(self, *, grace_ms: int) -> str:
        node_id = self.fleet.node_ids[0]
        await self._ask(PreemptNode, node_id=node_id, grace_ms=grace_ms)
        return node_id

    async def kill(self) -> str:
        node_id = self.fleet.node_ids[0]
        await self._ask(KillNode, node_id=node_id)
        return node_id

    async def add(self) -> None:
        await self._ask(AddNode)

    async def _ask(self, kind: type[Any], **fields: Any) -> None:
        self.operations += 1
        request = kind(operation_id=f"operation-{self.operations}", **fields)
        assert isinstance(await self.cloud.carry_out(request), CloudDone)

    async def ask(self, number: int) -> Answer:
        return await ask(self.client, self.fleet.alias, number)

    def recomputed(self) -> int:
        return sum(report.tokens_recomputed for report in self.fleet.view.workers())

    async def computes(self, *, kv_tokens: int) -> None:
        """Wait until every lead holds that much KV."""
        while any(r.is_serving and r.kv_tokens < kv_tokens for r in self.fleet.view.workers()):
            await self.fleet.view.wait_for_change()

    async def handovers(self) -> HandoverRecord:
        bucket = await self.bus.ensure_bucket(subjects.HANDOVER_BUCKET, bytes_max=BUCKET_BYTES_MAX)
        entry = await bucket.get(subjects.handover_key(self.fleet.alias))
        assert entry is not None
        return HANDOVER_RECORDS.decode(entry.value)


Script = Callable[[Theatre], Awaitable[None]]


@asynccontextmanager
async def a_theatre(
    folder: Path, *, transport: str, nodes: int = NODES, policy: Policy = Policy.TIDESERVE
) -> AsyncIterator[Theatre]:
    options = FleetOptions(
        model=bundled_model(),
        data_folder=folder,
        gateways=0,
        routers=2,
        planned=PlannedOptions(nodes=nodes, transport=transport, policy=policy),
    )
    fleet = Fleet(options, say=print)
    cloud = LocalCloud(fleet, say=print)
    try:
        await fleet.start()
        await cloud.start()
        bus = await NatsBus.connect(fleet.nats_url, name="test")
        async with asyncio.timeout(RUN_DEADLINE_S), TideClient(bus) as client:
            yield Theatre(fleet, cloud, bus, client)
        await bus.close()
    finally:
        await cloud.close()
        await fleet.stop()


async def play(folder: Path, script: Script, *, transport: str, nodes: int = NODES) -> int:
    """Play the script under constant load; every answer equals its undisturbed twin.

    Returns how many answers were compared.
    """
    async with a_theatre(folder, transport=transport, nodes=nodes) as theatre:
        undisturbed = await asyncio.gather(*(theatre.ask(number) for number in range(QUESTIONS)))
        load = ConstantLoad(theatre.client, theatre.fleet.alias)
        running = asyncio.create_task(load.run())
        playing = asyncio.create_task(script(theatre))
        await asyncio.wait([running, playing], return_when=asyncio.FIRST_COMPLETED)
        load.is_stopping = True
        await playing
        await running
    for number, answer in load.answers:
        assert answer == undisturbed[number], f"the answer to question {number} has changed"
        assert len(answer[0]) == MAX_TOKENS
    return len(load.answers)


async def through_many_shapes(theatre: Theatre) -> None:
    await theatre.pin(2, 2)
    await theatre.becomes(1, 2, 2)
    await theatre.pin(1, 2)
    await theatre.becomes(2, 1, 2)
    await theatre.pin(3, 1)
    await theatre.preempt(grace_ms=8_000)
    await theatre.becomes(1, 3, 1)
    await theatre.pin(2, 1)
    await theatre.add()
    await theatre.becomes(2, 2, 1)
    await theatre.pin(1, 1)
    await theatre.kill()
    await theatre.becomes(3, 1, 1)
    await theatre.pin(1, 4)
    await theatre.add()
    await theatre.becomes(1, 1, 4)
    await theatre.pin(1, 1)
    await theatre.becomes(4, 1, 1)


@pytest.mark.parametrize("transport", ["tcp", "ucx"])
def test_every_answer_is_exact_through_many_shapes(tmp_path: Path, transport: str) -> None:
    compared = asyncio.run(play(tmp_path, through_many_shapes, transport=transport))
    assert compared >= 2 * STREAMS


def under_notice_of(grace_ms: int) -> Script:
    async def script(theatre: Theatre) -> None:
        await theatre.pin(1, 2)
        await theatre.becomes(2, 1, 2)
        if grace_ms:
            await theatre.preempt(grace_ms=grace_ms)
        else:
            await theatre.kill()
        await theatre.becomes(1, 1, 2)

    return script


@pytest.mark.parametrize("grace_ms", [30_000, 5_000, 1_000, 0])
def test_a_node_leaves_after_any_notice_and_no_answer_changes(
    tmp_path: Path, grace_ms: int
) -> None:
    compared = asyncio.run(play(tmp_path, under_notice_of(grace_ms), transport="tcp"))
    assert compared >= STREAMS


async def sessions_move_to_the_replica_that_stays(folder: Path, policy: Policy) -> None:
    async with a_theatre(folder, transport="tcp", policy=policy) as theatre:
        await theatre.pin(2, 1)
        await theatre.becomes(2, 2, 1)
        begun = (await theatre.handovers()).handovers_begun
        load = ConstantLoad(theatre.client, theatre.fleet.alias, questions=None)
        running = asyncio.create_task(load.run())
        await theatre.computes(kv_tokens=STREAMS * BLOCK_TOKENS)
        await theatre.preempt(grace_ms=8_000)
        await theatre.becomes(1, 2, 1)
        load.is_stopping = True
        await running
        recomputed = theatre.recomputed()
        (story,) = (await theatre.handovers()).ended[begun:]
        moved = story.totals.sessions_released
        print(f"{policy}: {moved} sessions moved, {recomputed} tokens recomputed, {story.totals}")
        assert moved > 0
        assert story.totals.kv_blocks_moved > 0
        assert recomputed <= moved * (BLOCK_TOKENS + 1)
        again = await asyncio.gather(*(theatre.ask(question) for question, _ in load.answers))
        assert [answer for _, answer in load.answers] == again


@pytest.mark.parametrize("policy", [Policy.TIDESERVE, Policy.SPOTSERVE])
def test_sessions_move_with_their_kv_to_a_replica_that_stays(
    tmp_path: Path, policy: Policy
) -> None:
    asyncio.run(sessions_move_to_the_replica_that_stays(tmp_path, policy))

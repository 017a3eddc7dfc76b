"""Real nodes come and go under constant load; the fleet changes its shape and no client notices.

Every answer of the run is compared, token for token, with what the same fleet answered undisturbed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.client.client import TideClient
from libs.contracts.local_cloud import AddNode, CloudDone, KillNode, PreemptNode
from libs.contracts.placement import PinnedShape, PinShape
from libs.runtime.nats_bus import NatsBus
from services.launcher.demo_timeline import shape_of
from services.launcher.fleet import Fleet
from services.launcher.local_cloud import LocalCloud
from services.launcher.model_source import bundled_model
from services.launcher.recipes import FleetOptions, PlannedOptions
from services.launcher.shape import pin_shape

NODES = 4
STREAMS = 8
QUESTIONS = 12
MAX_TOKENS = 160
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
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    is_stopping: bool = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as streams:
            for first in range(STREAMS):
                streams.create_task(self._one_after_another(first))

    async def _one_after_another(self, number: int) -> None:
        while not self.is_stopping:
            answer = await ask(self.client, self.alias, number % QUESTIONS)
            self.answers.append((number % QUESTIONS, answer))
            number += STREAMS + 1


@dataclass
class Theatre:
    """A planned fleet on which a script is played."""

    fleet: Fleet
    cloud: LocalCloud
    bus: NatsBus
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

    def recomputed(self) -> int:
        return sum(report.tokens_recomputed for report in self.fleet.view.workers())


Script = Callable[[Theatre], Awaitable[None]]


async def play(folder: Path, script: Script, *, transport: str, nodes: int = NODES) -> int:
    """Play the script under constant load; every answer equals its undisturbed twin.

    Returns how many answers were compared.
    """
    options = FleetOptions(
        model=bundled_model(),
        data_folder=folder,
        gateways=0,
        routers=2,
        planned=PlannedOptions(nodes=nodes, transport=transport),
    )
    fleet = Fleet(options, say=print)
    cloud = LocalCloud(fleet, say=print)
    try:
        await fleet.start()
        await cloud.start()
        bus = await NatsBus.connect(fleet.nats_url, name="test")
        async with asyncio.timeout(RUN_DEADLINE_S), TideClient(bus) as client:
            undisturbed = await asyncio.gather(
                *(ask(client, fleet.alias, number) for number in range(QUESTIONS))
            )
            load = ConstantLoad(client, fleet.alias)
            running = asyncio.create_task(load.run())
            playing = asyncio.create_task(script(Theatre(fleet, cloud, bus)))
            await asyncio.wait([running, playing], return_when=asyncio.FIRST_COMPLETED)
            load.is_stopping = True
            await playing
            await running
        await bus.close()
    finally:
        await cloud.close()
        await fleet.stop()
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

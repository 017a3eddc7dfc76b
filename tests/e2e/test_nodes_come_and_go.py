"""Real nodes come and go under constant load; the fleet changes its shape and no client notices.

Every answer of the run is compared, token for token, with what the same fleet answered undisturbed.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.client.client import TideClient
from libs.contracts import subjects
from libs.contracts.handover_record import HANDOVER_RECORDS, HandoverRecord
from libs.contracts.local_cloud import AddNode, CloudDone, KillNode, PreemptNode
from libs.contracts.placement import PLACEMENTS, PinnedShape, PinShape, Placement, Policy
from libs.contracts.reports import MigratorReport, PlannerReport
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
LONG_TOKENS = 600
"""So many that no session ends within the patience of a migrator, on a fast machine too."""
OFFLINE_PRIORITY = -10
BLOCK_TOKENS = 16
"""Of a worker that is told nothing else."""
SHAPE_DEADLINE_S = 90.0
RUN_DEADLINE_S = 480.0

pytestmark = pytest.mark.timeout(600)

Answer = tuple[tuple[int, ...], str | None]


def parameters_of(number: int, max_tokens: int) -> dict[str, Any]:
    """Half greedy, half seeded, a third of them offline work at low priority; the number alone
    decides the answer."""
    sampling: dict[str, Any] = {"temperature": 0.0}
    if number % 2:
        sampling = {"temperature": 0.9, "top_p": 0.95, "seed": 1000 + number}
    question = f"What does method number {number} of str do?"
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "priority": OFFLINE_PRIORITY if number % 3 == 0 else 0,
        **sampling,
    }


async def ask(
    client: TideClient, alias: str, number: int, *, max_tokens: int = MAX_TOKENS
) -> Answer:
    stream = client.stream(model=alias, **parameters_of(number, max_tokens))
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
    max_tokens: int = MAX_TOKENS
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    is_stopping: bool = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as streams:
            for first in range(STREAMS):
                streams.create_task(self._one_after_another(first))

    async def _one_after_another(self, number: int) -> None:
        while not self.is_stopping:
            question = number if self.questions is None else number % self.questions
            answer = await ask(self.client, self.alias, question, max_tokens=self.max_tokens)
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
    leaving: set[str] = field(default_factory=set)

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

    async def preempt(self, *, grace_ms: int) -> None:
        node_id = self._oldest_node()
        self.leaving.add(node_id)
        await self._ask(PreemptNode, node_id=node_id, grace_ms=grace_ms)

    async def kill(self) -> None:
        await self._ask(KillNode, node_id=self._oldest_node())

    async def add(self) -> None:
        await self._ask(AddNode)

    async def _ask(self, kind: type[Any], **fields: Any) -> None:
        self.operations += 1
        request = kind(operation_id=f"operation-{self.operations}", **fields)
        assert isinstance(await self.cloud.carry_out(request), CloudDone)

    async def ask(self, number: int, *, max_tokens: int = MAX_TOKENS) -> Answer:
        return await ask(self.client, self.fleet.alias, number, max_tokens=max_tokens)

    def recomputed(self) -> int:
        return sum(report.tokens_recomputed for report in self.fleet.view.workers())

    def _oldest_node(self) -> str:
        return next(node for node in self.fleet.node_ids if node not in self.leaving)

    @contextmanager
    def frozen(self, process_id: int) -> Iterator[None]:
        """Stop a process with SIGSTOP, and let it wake at the end."""
        child = self.fleet.child_of(process_id)
        assert child is not None
        child.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            child.signal(signal.SIGCONT)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Look at every report until the condition holds."""
        async with asyncio.timeout(SHAPE_DEADLINE_S):
            while not condition():
                await self.fleet.view.wait_for_change()

    def leading_planner(self) -> PlannerReport:
        return next(report for report in self.fleet.view.planners() if report.is_leader)

    def owning_migrator(self) -> MigratorReport:
        return next(report for report in self.fleet.view.migrators() if report.is_owner)

    def is_led_by_another_than(self, planner_id: str) -> bool:
        reports = self.fleet.view.planners()
        return any(report.is_leader and report.planner_id != planner_id for report in reports)

    def is_owned_by_another_than(self, migrator_id: str) -> bool:
        reports = self.fleet.view.migrators()
        return any(report.is_owner and report.migrator_id != migrator_id for report in reports)

    async def computes(self, *, kv_tokens: int) -> None:
        """Wait until every lead holds that much KV."""
        while any(r.is_serving and r.kv_tokens < kv_tokens for r in self.fleet.view.workers()):
            await self.fleet.view.wait_for_change()

    async def placed(self, *, replicas: int | None = None) -> Placement:
        """Return the committed placement, once it has so many replicas."""
        bucket = await self.bus.ensure_bucket(subjects.PLACEMENT_BUCKET, bytes_max=BUCKET_BYTES_MAX)
        async with asyncio.timeout(SHAPE_DEADLINE_S):
            while True:
                entry = await bucket.get(subjects.placement_key(self.fleet.alias))
                assert entry is not None
                placement = PLACEMENTS.decode(entry.value)
                if replicas in (None, len(placement.replicas)):
                    return placement
                await self.fleet.view.wait_for_change()

    async def handovers(self) -> HandoverRecord:
        bucket = await self.bus.ensure_bucket(subjects.HANDOVER_BUCKET, bytes_max=BUCKET_BYTES_MAX)
        entry = await bucket.get(subjects.handover_key(self.fleet.alias))
        assert entry is not None
        return HANDOVER_RECORDS.decode(entry.value)


Script = Callable[[Theatre], Awaitable[None]]


@asynccontextmanager
async def a_theatre(
    folder: Path,
    *,
    transport: str,
    actors: int = 1,
    policy: Policy = Policy.TIDESERVE,
    nodes: int = NODES,
    **more: Any,
) -> AsyncIterator[Theatre]:
    """A fleet that is up, and gone afterwards; `more` are fields of its options."""
    options = FleetOptions(
        model=bundled_model(),
        data_folder=folder,
        routers=2,
        planned=PlannedOptions(
            nodes=nodes, transport=transport, policy=policy, planners=actors, migrators=actors
        ),
        **{"gateways": 0, **more},
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


async def play(folder: Path, script: Script, *, transport: str, actors: int = 1) -> int:
    """Play the script under constant load; every answer equals its undisturbed twin.

    Returns how many answers were compared.
    """
    async with a_theatre(folder, transport=transport, actors=actors) as theatre:
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


def test_every_answer_is_exact_through_many_shapes(tmp_path: Path) -> None:
    compared = asyncio.run(play(tmp_path, through_many_shapes, transport="tcp"))
    assert compared >= 2 * STREAMS


async def through_some_shapes(theatre: Theatre) -> None:
    await theatre.pin(2, 2)
    await theatre.becomes(1, 2, 2)
    await theatre.pin(3, 1)
    await theatre.preempt(grace_ms=8_000)
    await theatre.becomes(1, 3, 1)
    await theatre.pin(1, 1)
    await theatre.kill()
    await theatre.becomes(2, 1, 1)


def test_every_answer_is_exact_when_what_moves_goes_over_ucx(tmp_path: Path) -> None:
    asyncio.run(play(tmp_path, through_some_shapes, transport="ucx"))


async def through_all_notices(theatre: Theatre) -> None:
    await theatre.pin(1, 2)
    await theatre.becomes(2, 1, 2)
    for grace_ms in (30_000, 5_000, 1_000):
        await theatre.preempt(grace_ms=grace_ms)
        await theatre.becomes(1, 1, 2)
        await theatre.add()
        await theatre.becomes(2, 1, 2)
    await theatre.kill()
    await theatre.becomes(1, 1, 2)


def test_nodes_leave_after_any_notice_or_none_and_no_answer_changes(tmp_path: Path) -> None:
    compared = asyncio.run(play(tmp_path, through_all_notices, transport="tcp"))
    assert compared >= 2 * STREAMS


async def with_frozen_actors(theatre: Theatre) -> None:
    await theatre.becomes(4, 1, 1)
    worker = theatre.fleet.view.workers()[0]
    with theatre.frozen(worker.process_id):
        await theatre.becomes(3, 1, 1)
    await theatre.becomes(4, 1, 1)

    planner = theatre.leading_planner()
    with theatre.frozen(planner.process_id):
        await theatre.until(lambda: theatre.is_led_by_another_than(planner.planner_id))
        await theatre.kill()
        await theatre.becomes(3, 1, 1)
        placed = await theatre.placed(replicas=3)
    await theatre.until(lambda: _is_standing_by(theatre, planner.planner_id))
    assert await theatre.placed() == placed

    migrator = theatre.owning_migrator()
    with theatre.frozen(migrator.process_id):
        await theatre.until(lambda: theatre.is_owned_by_another_than(migrator.migrator_id))
        await theatre.kill()
        await theatre.becomes(2, 1, 1)
    await theatre.becomes(2, 1, 1)


def _is_standing_by(theatre: Theatre, planner_id: str) -> bool:
    return any(
        report.planner_id == planner_id and not report.is_leader
        for report in theatre.fleet.view.planners()
    )


def test_frozen_actors_that_wake_after_their_successors_took_over_change_nothing(
    tmp_path: Path,
) -> None:
    asyncio.run(play(tmp_path, with_frozen_actors, transport="tcp", actors=2))


async def sessions_move_to_the_replica_that_stays(folder: Path, policy: Policy) -> None:
    async with a_theatre(folder, transport="tcp", policy=policy) as theatre:
        await theatre.pin(2, 1)
        await theatre.becomes(2, 2, 1)
        begun = (await theatre.handovers()).handovers_begun
        load = ConstantLoad(
            theatre.client, theatre.fleet.alias, questions=None, max_tokens=LONG_TOKENS
        )
        running = asyncio.create_task(load.run())
        await theatre.computes(kv_tokens=STREAMS * BLOCK_TOKENS)
        await theatre.preempt(grace_ms=8_000)
        await theatre.becomes(1, 2, 1)
        load.is_stopping = True
        await running
        recomputed = theatre.recomputed()
        stories = (await theatre.handovers()).ended[begun:]
        moved = sum(story.totals.sessions_released for story in stories)
        blocks = sum(story.totals.kv_blocks_moved for story in stories)
        print(f"{policy}: {moved} sessions and {blocks} blocks moved, {recomputed} tokens again")
        assert moved > 0
        if policy is Policy.SPOTSERVE:
            # tideserve copies only what is not computed again faster, by the rates of this minute.
            assert blocks > 0
            assert recomputed <= moved * (BLOCK_TOKENS + 1)
        asked = (theatre.ask(number, max_tokens=LONG_TOKENS) for number, _ in load.answers)
        again = await asyncio.gather(*asked)
        assert [answer for _, answer in load.answers] == again


@pytest.mark.parametrize("policy", [Policy.TIDESERVE, Policy.SPOTSERVE])
def test_sessions_move_with_their_kv_to_a_replica_that_stays(
    tmp_path: Path, policy: Policy
) -> None:
    asyncio.run(sessions_move_to_the_replica_that_stays(tmp_path, policy))

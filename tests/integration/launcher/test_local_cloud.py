"""The cloud on one machine: nodes join, are told of their end by their watcher, and are killed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from libs.contracts import subjects
from libs.contracts.local_cloud import (
    CLOUD_ANSWERS,
    AddNode,
    CloudDone,
    CloudRefused,
    FromCloud,
    KillNode,
    PreemptNode,
    ToCloud,
)
from libs.contracts.preemption import NOTICE_REQUESTS, NoticeRequestAccepted, RaiseNotice
from libs.contracts.reports import Market
from libs.contracts.wire import encode
from libs.kernel.units import NS_PER_MS
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from services.launcher.local_cloud import LocalCloud

DEADLINE_S = 5.0


@dataclass
class FakeMachine:
    """Nodes without processes."""

    bus: MemoryBus
    node_ids: list[str] = field(default_factory=lambda: ["node-1"])
    killed: list[str] = field(default_factory=list)
    has_killed: asyncio.Event = field(default_factory=asyncio.Event)

    async def add_node(self, *, market: Market = Market.SPOT, zone: str | None = None) -> str:
        del market, zone
        self.node_ids.append(f"node-{len(self.node_ids) + 1}")
        return self.node_ids[-1]

    def kill_node(self, node_id: str) -> list[int]:
        self.node_ids.remove(node_id)
        self.killed.append(node_id)
        self.has_killed.set()
        return [1]


@asynccontextmanager
async def a_cloud() -> AsyncIterator[FakeMachine]:
    machine = FakeMachine(MemoryBus(MemoryHub()))
    cloud = LocalCloud(machine, say=lambda _: None)
    await cloud.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield machine
    finally:
        await cloud.close()


async def ask(machine: FakeMachine, request: ToCloud) -> FromCloud:
    reply = await machine.bus.request(subjects.LOCAL_CLOUD, encode(request))
    return CLOUD_ANSWERS.decode(reply.payload)


async def heard_by_watcher(machine: FakeMachine, node_id: str) -> "asyncio.Task[RaiseNotice]":
    """Play the node's watcher for one notice."""
    subscription = await machine.bus.subscribe(subjects.notice_request(node_id))

    async def listen() -> RaiseNotice:
        message = await anext(aiter(subscription))
        notice = NOTICE_REQUESTS.decode(message.payload)
        assert isinstance(notice, RaiseNotice)
        assert message.reply_to is not None
        answer = NoticeRequestAccepted(notice_id=notice.notice_id, node_id=node_id)
        await machine.bus.publish(message.reply_to, encode(answer))
        return notice

    return asyncio.create_task(listen())


async def _preempting() -> None:
    async with a_cloud() as machine:
        watcher = await heard_by_watcher(machine, "node-1")
        answer = await ask(machine, PreemptNode(operation_id="o1", node_id="node-1", grace_ms=50))
        assert answer == CloudDone(operation_id="o1", node_id="node-1")
        notice = await watcher
        assert notice.grace_ns == 50 * NS_PER_MS
        assert machine.killed == []
        await machine.has_killed.wait()
        assert machine.killed == ["node-1"]


def test_a_preempted_node_is_told_by_its_watcher_and_killed_when_the_grace_is_over() -> None:
    asyncio.run(_preempting())


async def _without_watcher() -> None:
    async with a_cloud() as machine:
        await ask(machine, PreemptNode(operation_id="o1", node_id="node-1", grace_ms=10))
        await machine.has_killed.wait()


def test_a_node_whose_watcher_is_dead_ends_all_the_same() -> None:
    asyncio.run(_without_watcher())


async def _sooner() -> None:
    async with a_cloud() as machine:
        await ask(machine, PreemptNode(operation_id="o1", node_id="node-1", grace_ms=3_600_000))
        await ask(machine, PreemptNode(operation_id="o2", node_id="node-1", grace_ms=10))
        await machine.has_killed.wait()


def test_the_earlier_of_two_ends_counts() -> None:
    asyncio.run(_sooner())


async def _repeated() -> None:
    async with a_cloud() as machine:
        first = await ask(machine, AddNode(operation_id="o1"))
        again = await ask(machine, AddNode(operation_id="o1"))
        assert first == again
        assert machine.node_ids == ["node-1", "node-2"]


def test_a_repeated_request_is_carried_out_once() -> None:
    asyncio.run(_repeated())


async def _refused() -> None:
    async with a_cloud() as machine:
        answer = await ask(machine, KillNode(operation_id="o1", node_id="node-9"))
        assert isinstance(answer, CloudRefused)
        assert "there is node-1" in answer.message
        reply = await machine.bus.request(subjects.LOCAL_CLOUD, b"garbage")
        assert isinstance(CLOUD_ANSWERS.decode(reply.payload), CloudRefused)
        answer = await ask(machine, KillNode(operation_id="o2", node_id="node-1"))
        assert answer == CloudDone(operation_id="o2", node_id="node-1")
        assert machine.killed == ["node-1"]


def test_unknown_nodes_and_garbage_are_refused_and_the_cloud_lives_on() -> None:
    asyncio.run(_refused())

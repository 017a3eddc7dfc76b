"""The cloud that a launcher plays: it adds nodes, gives notice, and takes nodes away for good.

A preempted node is told by its own watcher, as a real cloud's notice would be, and every process
of it is killed when the grace is over, whatever it has managed to save by then.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from libs.contracts import subjects
from libs.contracts.local_cloud import (
    CLOUD_REQUESTS,
    AddNode,
    CloudDone,
    CloudRefused,
    FromCloud,
    KillNode,
    PreemptNode,
    ToCloud,
)
from libs.contracts.preemption import (
    NOTICE_ANSWERS,
    NoticeRequestRejected,
    RaiseNotice,
)
from libs.contracts.reports import Market
from libs.contracts.wire import encode, encoding_of
from libs.kernel.bounded import RecentMap
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S, seconds
from libs.runtime.bus import BusMessage, CoreBus, Subscription
from libs.runtime.clock import Clock, SystemClock

NOTICE_TIMEOUT_NS: Final = 1 * NS_PER_S
"""A watcher answers in milliseconds; the node's end does not wait for it."""
OPERATIONS_MAX: Final = 1024
"""Answers remembered for repeated requests; past it the oldest would be carried out again."""


class Machine(Protocol):
    """What has the nodes: a Fleet."""

    @property
    def bus(self) -> CoreBus:
        """The launcher's own connection."""

    @property
    def node_ids(self) -> list[str]:
        """Nodes that have not been killed."""

    async def add_node(self, *, market: Market = Market.SPOT, zone: str | None = None) -> str:
        """Start a node and return its id."""

    def kill_node(self, node_id: str) -> list[int]:
        """End the node's processes for good and return their ids."""


class LocalCloud:
    """Answers requests for one fleet until it is closed."""

    def __init__(
        self, fleet: Machine, *, say: Callable[[str], None], clock: Clock | None = None
    ) -> None:
        self._fleet = fleet
        self._say = say
        self._clock = clock or SystemClock()
        self._answers: RecentMap[str, FromCloud] = RecentMap(entries_max=OPERATIONS_MAX)
        self._ends: dict[str, tuple[int, asyncio.Task[None]]] = {}
        """When each node under notice is killed, and the task that will do it."""
        self._subscription: Subscription | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer; the fleet must have been started."""
        self._subscription = await self._fleet.bus.subscribe(subjects.LOCAL_CLOUD)
        self._listening = asyncio.create_task(self._listen(self._subscription))

    async def close(self) -> None:
        """Answer nothing more, and end nothing more."""
        tasks = [task for _, task in self._ends.values()]
        if self._listening is not None:
            tasks.append(self._listening)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.close()

    async def carry_out(self, request: ToCloud) -> FromCloud:
        """Do what is asked, once for each operation id, and say how it went."""
        known = self._answers.get(request.operation_id)
        if known is not None:
            return known
        answer = await self._do(request)
        self._answers.put(request.operation_id, answer)
        return answer

    async def _do(self, request: ToCloud) -> FromCloud:
        match request:
            case AddNode():
                node_id = await self._fleet.add_node(market=request.market, zone=request.zone)
                self._say(f"{node_id} joins ({request.market.value})")
            case PreemptNode(node_id=node_id) | KillNode(node_id=node_id):
                if node_id not in self._fleet.node_ids:
                    known = ", ".join(self._fleet.node_ids) or "none"
                    return CloudRefused(
                        operation_id=request.operation_id,
                        message=f"there is no node {node_id}; there is {known}",
                    )
                if isinstance(request, PreemptNode) and request.grace_ms > 0:
                    await self._preempt(request)
                else:
                    self._kill(node_id)
        return CloudDone(operation_id=request.operation_id, node_id=node_id)

    async def _preempt(self, request: PreemptNode) -> None:
        grace_ns = request.grace_ms * NS_PER_MS
        end_at_ns = self._clock.now_ns() + grace_ns
        known = self._ends.get(request.node_id)
        if known is None or end_at_ns < known[0]:
            if known is not None:
                known[1].cancel()
            task = asyncio.create_task(self._kill_after(request.node_id, grace_ns))
            self._ends[request.node_id] = (end_at_ns, task)
        self._say(f"{request.node_id} is told that it ends in {seconds(grace_ns):g} s")
        await self._give_notice(request, grace_ns=grace_ns)

    async def _give_notice(self, request: PreemptNode, *, grace_ns: int) -> None:
        """A node whose watcher does not answer ends all the same: the cloud does not wait."""
        notice = RaiseNotice(
            notice_id=request.operation_id,
            node_id=request.node_id,
            grace_ns=grace_ns,
            detail="tideserve preempt",
        )
        try:
            reply = await self._fleet.bus.request(
                subjects.notice_request(request.node_id),
                encode(notice),
                timeout_ns=NOTICE_TIMEOUT_NS,
            )
            answer = NOTICE_ANSWERS.decode(reply.payload)
        except (Unavailable, ContractViolation) as error:
            self._say(f"{request.node_id} was not reached, and ends without notice: {error}")
            return
        if isinstance(answer, NoticeRequestRejected):
            self._say(f"{request.node_id} took no notice: {answer.message}")

    async def _kill_after(self, node_id: str, grace_ns: int) -> None:
        await asyncio.sleep(seconds(grace_ns))
        self._ends.pop(node_id, None)
        self._kill(node_id)

    def _kill(self, node_id: str) -> None:
        known = self._ends.pop(node_id, None)
        if known is not None:
            known[1].cancel()
        process_ids = self._fleet.kill_node(node_id)
        self._say(f"{node_id} is taken away ({len(process_ids)} processes)")

    async def _listen(self, subscription: Subscription) -> None:
        async for message in subscription:
            await self._answer(message)

    async def _answer(self, message: BusMessage) -> None:
        try:
            answer = await self.carry_out(CLOUD_REQUESTS.decode(message.payload))
        except ContractViolation as violation:
            answer = CloudRefused(message=str(violation)[:1024])
        if message.reply_to:
            encoding = encoding_of(message.payload)
            await self._fleet.bus.publish(message.reply_to, encode(answer, encoding=encoding))

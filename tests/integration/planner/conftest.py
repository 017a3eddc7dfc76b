"""The test as the rest of the fleet: it reports as workers do and watches what is committed."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from libs.contracts import subjects
from libs.contracts.placement import PLACEMENTS, CapacityWanted, Placement
from libs.contracts.preemption import NoticeKind, PreemptionNotice
from libs.contracts.reports import REPORTS, Market, PlannerReport, WorkerReport
from libs.contracts.wire import encode
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import BusMessage, CoreBus, Subscription

ALIAS = "tide-tiny"
BEAT_S = 0.2
WAIT_S = 30.0
"""Nothing here takes three seconds; a busy machine may."""


class FleetEnd:
    """Workers that report every beat, and what planners say."""

    def __init__(self, bus: CoreBus) -> None:
        self.bus = bus
        self.workers: dict[str, WorkerReport] = {}
        self.placements: list[Placement] = []
        self.capacity: list[CapacityWanted] = []
        self.planners: dict[str, PlannerReport] = {}
        self._changed = asyncio.Condition()

    def add_worker(self, worker_id: str, **fields: object) -> None:
        self.workers[worker_id] = WorkerReport(
            worker_id=worker_id,
            beat=0,
            alias=ALIAS,
            process_id=1,
            context_tokens_max=2048,
            vocabulary_size=2048,
            block_tokens=16,
            blocks_total=0,
            blocks_free=0,
            sessions_running=0,
            sessions_waiting=0,
            tokens_waiting=0,
            tokens_generated=0,
            steps=0,
            step_ms_recent=0.0,
            node_id=f"node-{worker_id}",
            zone="zone-a",
            market=Market.SPOT,
            is_planned=True,
            is_serving=False,
        ).model_copy(update=fields)

    async def notice(self, node_id: str, *, grace_s: int = 30) -> None:
        notice = PreemptionNotice(
            notice_id="n-1",
            node_id=node_id,
            kind=NoticeKind.PREEMPTION,
            source="test",
            observed_at_unix_ns=0,
            grace_ns=grace_s * NS_PER_S,
        )
        await self.bus.publish(subjects.notice(node_id), encode(notice))

    @property
    def leaders(self) -> list[str]:
        return sorted(i for i, report in self.planners.items() if report.is_leader)

    def placed(self) -> set[str]:
        if not self.placements:
            return set()
        return {w for r in self.placements[-1].replicas for w in r.worker_ids}

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for it; a message may make it true."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(condition)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FleetEnd"]:
        heard = {
            subjects.PLACEMENT_ALL: self._on_placement,
            subjects.CAPACITY_ALL: self._on_placement,
            subjects.PLANNER_REPORTS: self._on_report,
        }
        subscriptions = [await self.bus.subscribe(subject) for subject in heard]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._read(subscription, handler))
                for subscription, handler in zip(subscriptions, heard.values(), strict=True)
            ]
            tasks.append(group.create_task(self._beat()))
            yield self
            for task in tasks:
                task.cancel()

    async def _read(
        self, subscription: Subscription, handler: Callable[[BusMessage], None]
    ) -> None:
        async for message in subscription:
            async with self._changed:
                handler(message)
                self._changed.notify_all()

    def _on_placement(self, message: BusMessage) -> None:
        heard = PLACEMENTS.decode(message.payload)
        if isinstance(heard, Placement):
            self.placements.append(heard)
        else:
            self.capacity.append(heard)

    def _on_report(self, message: BusMessage) -> None:
        report = REPORTS.decode(message.payload)
        assert isinstance(report, PlannerReport)
        self.planners[report.planner_id] = report

    async def _beat(self) -> None:
        while True:
            for report in list(self.workers.values()):
                await self.bus.publish(subjects.worker_report(report.worker_id), encode(report))
            await asyncio.sleep(BEAT_S)


@pytest.fixture
def fleet_end() -> type[FleetEnd]:
    return FleetEnd


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments: dict[str, Any] = {
        name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames
    }
    asyncio.run(pyfuncitem.obj(**arguments))
    return True

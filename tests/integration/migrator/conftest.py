"""Scripted workers on a real broker; the test is also the planner."""

import asyncio
import inspect
import time
from collections.abc import Callable, Sequence

import pytest

from libs.contracts import subjects
from libs.contracts.handover import WORKER_SHAPE, ToMigrator
from libs.contracts.handover_record import HANDOVER_RECORDS, HandoverRecord
from libs.contracts.placement import Placement
from libs.contracts.wire import encode
from libs.runtime.bus import Bus, KeyValue
from services.migrator.ports import BUCKET_BYTES_MAX
from tests.scripted_worker import ScriptedWorker

WAIT_S = 30.0
"""Nothing here takes ten seconds; a busy machine may."""
TICK_S = 0.02


class LiveFleet:
    """Workers that obey over the bus, and the two buckets."""

    def __init__(self, bus: Bus, *, placements: KeyValue, handovers: KeyValue) -> None:
        self.bus = bus
        self.placements = placements
        self.handovers = handovers
        self.workers: dict[str, ScriptedWorker] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def add_worker(self, worker_id: str) -> ScriptedWorker:
        """Start to report and to obey."""
        worker = self.workers[worker_id] = ScriptedWorker(
            worker_id=worker_id, peers=lambda: list(self.workers.values())
        )
        subscription = await self.bus.subscribe(subjects.worker_shape(worker_id))

        async def obey() -> None:
            async for message in subscription:
                command = WORKER_SHAPE.decode(message.payload)
                for answer in worker.receive(command, now_ns=time.monotonic_ns()):
                    await self._answer(command.migrator_id, answer)

        self._tasks += [asyncio.create_task(obey()), asyncio.create_task(self._live(worker))]
        return worker

    async def _live(self, worker: ScriptedWorker) -> None:
        for beat in range(1_000_000):
            if beat % 10 == 0:
                report = worker.report(time.monotonic_ns())
                await self.bus.publish(subjects.worker_report(worker.worker_id), encode(report))
            worker.decode()
            for message, answer in worker.tick(now_ns=time.monotonic_ns()):
                await self._answer(message.migrator_id, answer)
            await asyncio.sleep(TICK_S)

    async def _answer(self, migrator_id: str, answer: ToMigrator) -> None:
        await self.bus.publish(subjects.migrator_control(migrator_id), encode(answer))

    async def place(self, placement: Placement) -> None:
        """Commit and announce, as a planner does."""
        key = subjects.placement_key(placement.alias)
        await self.placements.put(key, encode(placement))
        await self.bus.publish(subjects.placement(placement.alias), encode(placement))

    async def record(self) -> HandoverRecord | None:
        """Read what the owner stored last."""
        entry = await self.handovers.get(subjects.handover_key("tide"))
        return None if entry is None else HANDOVER_RECORDS.decode(entry.value)

    async def until(self, condition: Callable[[HandoverRecord], bool]) -> HandoverRecord:
        """Wait until the record is so."""
        async with asyncio.timeout(WAIT_S):
            while True:
                record = await self.record()
                if record is not None and condition(record):
                    return record
                await asyncio.sleep(TICK_S)

    def check(self) -> None:
        """Fail if any worker was asked for what nobody may ask."""
        violations: Sequence[str] = [v for w in self.workers.values() for v in w.violations]
        assert not violations, violations

    async def close(self) -> None:
        """Let all workers end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def open_fleet(bus: Bus) -> LiveFleet:
    """Create the buckets, as the first migrator or planner would."""
    return LiveFleet(
        bus,
        placements=await bus.ensure_bucket(subjects.PLACEMENT_BUCKET, bytes_max=BUCKET_BYTES_MAX),
        handovers=await bus.ensure_bucket(subjects.HANDOVER_BUCKET, bytes_max=BUCKET_BYTES_MAX),
    )


@pytest.fixture
def live_fleet() -> Callable[..., object]:
    return open_fleet


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True

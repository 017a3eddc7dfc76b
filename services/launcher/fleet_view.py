"""The fleet as its reports show it: who is there, how loaded, since when silent."""

import asyncio
from typing import Final

from libs.contracts import subjects
from libs.contracts.reports import (
    REPORTS,
    GatewayReport,
    MigratorReport,
    OfflineQueueReport,
    PlannerReport,
    Report,
    ReportT,
    RouterReport,
    WorkerReport,
    sender_id,
)
from libs.kernel.errors import ContractViolation
from libs.kernel.units import NS_PER_MS, NS_PER_S, seconds
from libs.runtime.bus import CoreBus, Subscription
from libs.runtime.clock import Clock, SystemClock

SILENCE_NS_MAX: Final = 3 * NS_PER_S
"""A process unheard for longer is left out of the view; reports come every 0.2 to 1 s."""
ENTRIES_MAX: Final = 4096
"""Processes held in the view; past it the ones silent for longest are forgotten."""
LISTEN_NS: Final = 1300 * NS_PER_MS
"""A little more than the longest report interval: every living process is heard once."""


class FleetView:
    """Listens to all reports and keeps the newest of each process."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._newest: dict[str, tuple[int, Report]] = {}
        self._changed = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, bus: CoreBus) -> None:
        """Begin to listen."""
        for pattern in subjects.ALL_REPORTS:
            subscription = await bus.subscribe(pattern)
            self._subscriptions.append(subscription)
            self._tasks.append(asyncio.create_task(self._listen(subscription)))

    async def close(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            await subscription.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def workers(self) -> list[WorkerReport]:
        """Workers heard recently, by id."""
        return self._recent(WorkerReport)

    def routers(self) -> list[RouterReport]:
        """Routers heard recently, by id."""
        return self._recent(RouterReport)

    def gateways(self) -> list[GatewayReport]:
        """Gateways heard recently, by id."""
        return self._recent(GatewayReport)

    def planners(self) -> list[PlannerReport]:
        """Planners heard recently, by id."""
        return self._recent(PlannerReport)

    def migrators(self) -> list[MigratorReport]:
        """Migrators heard recently, by id."""
        return self._recent(MigratorReport)

    def offline_queues(self) -> list[OfflineQueueReport]:
        """Offline queues heard recently, by id."""
        return self._recent(OfflineQueueReport)

    def aliases(self) -> list[str]:
        """Models that some worker serves."""
        return sorted({report.alias for report in self.workers()})

    def process_ids(self) -> frozenset[int]:
        """Processes heard recently."""
        return frozenset(report.process_id for report in self._heard())

    def process_id_by_entity(self) -> dict[str, int]:
        """Whoever was heard recently, and its process."""
        return {sender_id(report): report.process_id for report in self._heard()}

    async def wait_for_change(self) -> None:
        """Return when a report has come since the last look."""
        await self._changed.wait()
        self._changed.clear()

    def take(self, report: Report) -> None:
        """Replace what this process said before."""
        key = f"{report.type}/{sender_id(report)}"
        self._newest.pop(key, None)
        self._newest[key] = (self._clock.now_ns(), report)
        while len(self._newest) > ENTRIES_MAX:
            self._newest.pop(next(iter(self._newest)))
        self._changed.set()

    async def _listen(self, subscription: Subscription) -> None:
        async for message in subscription:
            try:
                self.take(REPORTS.decode(message.payload))
            except ContractViolation:
                continue  # A report is repeated; one that cannot be read says nothing.

    def _recent(self, kind: type[ReportT]) -> list[ReportT]:
        return sorted((r for r in self._heard() if isinstance(r, kind)), key=sender_id)

    def _heard(self) -> list[Report]:
        since_ns = self._clock.now_ns() - SILENCE_NS_MAX
        return [report for at_ns, report in self._newest.values() if at_ns >= since_ns]


async def listen_once(bus: CoreBus, *, duration_ns: int = LISTEN_NS) -> FleetView:
    """Listen just long enough to have heard every living process once; return what was heard."""
    view = FleetView()
    await view.start(bus)
    await asyncio.sleep(seconds(duration_ns))
    await view.close()
    return view

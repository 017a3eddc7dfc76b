"""What the fleet looked like while the demo ran: its shape over time, and what was moved."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Final

from libs.contracts.reports import MigratorReport, WorkerReport
from libs.kernel.units import MIB
from libs.runtime.clock import Clock
from services.launcher.fleet_view import FleetView

LOOK_INTERVAL_S: Final = 0.05
"""A quarter of a report interval; a look costs microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeSeen:
    """From this instant on the fleet served in this shape."""

    at_ns: int
    shape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverSeen:
    """One hand-over that was finished."""

    at_ns: int
    weight_bytes: int
    kv_bytes: int
    stall_ms: float

    @property
    def sentence(self) -> str:
        """What it cost, for people."""
        return (
            f"hand-over done: {self.weight_bytes / MIB:.1f} MiB of weights and"
            f" {self.kv_bytes / MIB:.1f} MiB of KV moved, {self.stall_ms:.0f} ms of stall"
        )


class Timeline:
    """Watches the reports until stopped."""

    def __init__(self, view: FleetView, *, clock: Clock) -> None:
        self.shapes: list[ShapeSeen] = []
        self.handovers: list[HandoverSeen] = []
        self._view = view
        self._clock = clock
        self._before: dict[str, MigratorReport] = {}
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Watch no more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def look(self) -> None:
        """Note what has changed since the last look."""
        shape = shape_of(self._view.workers())
        if shape and (not self.shapes or self.shapes[-1].shape != shape):
            self.shapes.append(ShapeSeen(at_ns=self._clock.now_ns(), shape=shape))
        for report in self._view.migrators():
            before = self._before.get(report.migrator_id)
            self._before[report.migrator_id] = report
            if before is not None and report.handovers_done > before.handovers_done:
                self.handovers.append(self._seen(report, before))

    def _seen(self, report: MigratorReport, before: MigratorReport) -> HandoverSeen:
        return HandoverSeen(
            at_ns=self._clock.now_ns(),
            weight_bytes=report.weight_bytes_moved - before.weight_bytes_moved,
            kv_bytes=report.kv_bytes_moved - before.kv_bytes_moved,
            stall_ms=report.stall_ms_recent,
        )

    async def _watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_INTERVAL_S)


def shape_of(workers: list[WorkerReport]) -> str:
    """Return the replicas that serve, such as `2 x (P1 M2) + 1 x (P2 M1)`; empty: none does."""
    shapes = Counter(
        (report.position.stages, report.position.shards)
        for report in workers
        if report.is_serving and report.position is not None
    )
    return " + ".join(
        f"{count} x (P{stages} M{shards})" for (stages, shards), count in sorted(shapes.items())
    )

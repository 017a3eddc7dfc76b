"""The dashboard's ears and its pulse: subscriptions in, one snapshot a second out.

What is stored (placements, hand-overs, batches) is read from its bucket, and only while somebody
looks at the page. A bucket that is not there belongs to a service that does not run.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from typing import Final, TypeVar

from libs.contracts import subjects
from libs.contracts.batches import BATCH_RECORDS
from libs.contracts.handover_record import HANDOVER_RECORDS
from libs.contracts.placement import PLACEMENTS, Placement
from libs.contracts.preemption import NOTICES
from libs.contracts.reports import REPORTS
from libs.contracts.wire import Codec, Message
from libs.kernel.errors import ContractViolation, Unavailable
from libs.runtime.bus import Bus, StreamMissing, Subscription
from libs.runtime.clock import Clock
from libs.runtime.keys import bucket_stream, entry_of
from services.http_gateway.dashboard.snapshot import Snapshot
from services.http_gateway.dashboard.view import BATCHES_SHOWN_MAX, DashboardView

INTERVAL_S: Final = 1.0
REPORT_PATTERNS: Final = (
    subjects.WORKER_REPORTS,
    subjects.ROUTER_REPORTS,
    subjects.GATEWAY_REPORTS,
    subjects.PLANNER_REPORTS,
    subjects.MIGRATOR_REPORTS,
    subjects.OFFLINE_QUEUE_REPORTS,
)
WATCHERS_MAX: Final = 64
"""Open pages of one gateway; past it the next is answered 503."""
ALIASES_READ_MAX: Final = 16

RecordT = TypeVar("RecordT", bound=Message)


class DashboardFeed:
    """Keeps one view up to date and hands its snapshots to every open page."""

    def __init__(self, *, bus: Bus, view: DashboardView, clock: Clock) -> None:
        self.view = view
        self.watchers = 0
        self.latest: Snapshot | None = None
        self._bus = bus
        self._clock = clock
        self._latest_event = b""
        self._is_closing = False
        self._tick: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> list[asyncio.Task[None]]:
        """Begin to listen and to look; return what runs, for the gateway to watch over."""
        listening = []
        for pattern in (*REPORT_PATTERNS, subjects.NOTICES_ALL):
            subscription = await self._bus.subscribe(pattern)
            take = self._take_notice if pattern == subjects.NOTICES_ALL else self._take_report
            listening.append(asyncio.create_task(_listen(subscription, take)))
        return [*listening, asyncio.create_task(self._look_for_ever())]

    def close(self) -> None:
        """End every open page's stream, so that the server can stop."""
        self._is_closing = True
        self._wake()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the past once, then each snapshot as it comes; what a slow reader misses is gone.

        The caller counts itself in `watchers`.
        """
        samples = [asdict(sample) for sample in self.view.history.samples()]
        yield _event("history", samples)
        if self.latest is not None:
            yield _event("snapshot", asdict(self.latest))
        while not self._is_closing:
            await asyncio.shield(self._tick)
            if not self._is_closing:
                yield self._latest_event

    def look(self) -> Snapshot:
        """Take the next snapshot and send it to whoever watches."""
        self.latest = self.view.look(
            now_ns=self._clock.now_ns(), now_unix_ns=self._clock.now_unix_ns()
        )
        if self.watchers:
            self._latest_event = _event("snapshot", asdict(self.latest))
        self._wake()
        return self.latest

    def _wake(self) -> None:
        tick, self._tick = self._tick, asyncio.get_running_loop().create_future()
        tick.set_result(None)

    async def _look_for_ever(self) -> None:
        while True:
            if self.watchers:
                await self._read_buckets()
            self.look()
            await asyncio.sleep(INTERVAL_S)

    async def _read_buckets(self) -> None:
        heard = self.view.heard
        placements = await self._read(
            subjects.PLACEMENT_BUCKET, PLACEMENTS, entries_max=ALIASES_READ_MAX
        )
        if placements is not None:
            heard.placements = tuple(p for p in placements if isinstance(p, Placement))
        handovers = await self._read(
            subjects.HANDOVER_BUCKET, HANDOVER_RECORDS, entries_max=ALIASES_READ_MAX
        )
        if handovers is not None:
            heard.handovers = tuple(handovers)
        batches = await self._read(
            subjects.BATCH_BUCKET, BATCH_RECORDS, entries_max=BATCHES_SHOWN_MAX
        )
        if batches is not None:
            heard.batches = tuple(batches)

    async def _read(
        self, bucket: str, codec: Codec[RecordT], *, entries_max: int
    ) -> list[RecordT] | None:
        """Return the records under the last keys, the last first; None if nobody answers."""
        stream = bucket_stream(bucket)
        records = []
        try:
            keys = await self._bus.subjects(stream, f"$KV.{bucket}.>")
            for subject in itertools.islice(sorted(keys, reverse=True), entries_max):
                entry = entry_of(await self._bus.last_message(stream, subject))
                if entry is not None:
                    records.append(codec.decode(entry.value))
        except StreamMissing:
            return []
        except (Unavailable, ContractViolation):
            return None  # What was read before goes on to be shown.
        return records

    def _take_report(self, payload: bytes) -> None:
        self.view.heard.take_report(REPORTS.decode(payload), now_ns=self._clock.now_ns())

    def _take_notice(self, payload: bytes) -> None:
        self.view.heard.take_notice(NOTICES.decode(payload), now_ns=self._clock.now_ns())


async def _listen(subscription: Subscription, take: Callable[[bytes], None]) -> None:
    try:
        async for message in subscription:
            try:
                take(message.payload)
            except ContractViolation:
                continue  # Somebody else's mistake; the next one replaces it.
    finally:
        await subscription.close()


def _event(name: str, content: object) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n".encode()

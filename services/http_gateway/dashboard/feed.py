"""The dashboard's ears and its pulse: what is said in, one snapshot a second out.

Reports come from the gateway, which decodes each once for everybody. What is stored (placements,
hand-overs, batches) is read from its bucket, and only while somebody looks at the page. A bucket
that is not there belongs to a service that does not run.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from typing import Final, TypeVar

from pydantic import TypeAdapter

from libs.contracts import subjects
from libs.contracts.batches import BATCH_RECORDS
from libs.contracts.handover_record import HANDOVER_RECORDS
from libs.contracts.placement import PLACEMENTS, Placement
from libs.contracts.preemption import NOTICES
from libs.contracts.reports import Report
from libs.contracts.wire import Codec, Message
from libs.kernel.errors import ContractViolation, Unavailable
from libs.runtime.bus import Bus, StreamMissing, Subscription
from libs.runtime.clock import Clock
from libs.runtime.keys import bucket_stream, entry_of
from services.http_gateway.dashboard.snapshot import Sample, Snapshot
from services.http_gateway.dashboard.view import BATCHES_SHOWN_MAX, DashboardView

INTERVAL_S: Final = 1.0
WATCHERS_MAX: Final = 64
"""Open pages of one gateway; past it the next is answered 503."""
ALIASES_READ_MAX: Final = 16

SAMPLES: Final = TypeAdapter(tuple[Sample, ...])
SNAPSHOTS: Final = TypeAdapter(Snapshot)

RecordT = TypeVar("RecordT", bound=Message)


class DashboardFeed:
    """Keeps one view up to date and hands its snapshots to every open page."""

    def __init__(self, *, bus: Bus, view: DashboardView, clock: Clock) -> None:
        self.view = view
        self.watchers = 0
        self._bus = bus
        self._clock = clock
        self._latest_event = b""
        self._is_closing = False
        self._tick: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> list[asyncio.Task[None]]:
        """Begin to listen and to look; return what runs, for the gateway to watch over."""
        notices = await self._bus.subscribe(subjects.NOTICES_ALL)
        return [
            asyncio.create_task(self._listen(notices)),
            asyncio.create_task(self._look_for_ever()),
            asyncio.create_task(self._read_for_ever()),
        ]

    def take_report(self, report: Report) -> None:
        """Note what a process says of itself."""
        self.view.heard.take_report(report, now_ns=self._clock.now_ns())

    def close(self) -> None:
        """End every open page's stream, so that the server can stop."""
        self._is_closing = True
        self._wake()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the past once, then each snapshot as it comes; what a slow reader misses is gone.

        The caller counts itself in `watchers`.
        """
        yield _event("history", SAMPLES.dump_json(self.view.history.samples()))
        while not self._is_closing:
            # Shielded: a page that goes away must not cancel the tick of the others.
            await asyncio.shield(self._tick)
            if not self._is_closing:
                yield self._latest_event

    def look(self) -> None:
        """Take the next sample; where somebody watches, send them the snapshot of now."""
        now_ns, now_unix_ns = self._clock.now_ns(), self._clock.now_unix_ns()
        sample = self.view.tick(now_ns=now_ns, now_unix_ns=now_unix_ns)
        if self.watchers:
            snapshot = self.view.snapshot(sample, now_ns=now_ns, now_unix_ns=now_unix_ns)
            self._latest_event = _event("snapshot", SNAPSHOTS.dump_json(snapshot))
            self._wake()

    def _wake(self) -> None:
        tick, self._tick = self._tick, asyncio.get_running_loop().create_future()
        tick.set_result(None)

    async def _look_for_ever(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(INTERVAL_S)

    async def _read_for_ever(self) -> None:
        """Read beside the looking: a broker that does not answer must not stop the page."""
        while True:
            if self.watchers:
                await self._read_buckets()
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
        records: list[RecordT] = []
        try:
            keys = await self._bus.subjects(stream, f"$KV.{bucket}.>")
            for subject in itertools.islice(sorted(keys, reverse=True), entries_max):
                entry = entry_of(await self._bus.last_message(stream, subject))
                if entry is not None:
                    records += _decoded(codec, entry.value)
        except StreamMissing:
            return []
        except Unavailable:
            return None  # What was read before goes on to be shown.
        return records

    async def _listen(self, notices: Subscription) -> None:
        try:
            async for message in notices:
                try:
                    notice = NOTICES.decode(message.payload)
                except ContractViolation:
                    continue  # Somebody else's mistake; the next one replaces it.
                self.view.heard.take_notice(notice, now_ns=self._clock.now_ns())
        finally:
            await notices.close()


def _decoded(codec: Codec[RecordT], value: bytes) -> list[RecordT]:
    """Return the record, or nothing where a newer or broken writer left what cannot be read."""
    try:
        return [codec.decode(value)]
    except ContractViolation:
        return []


def _event(name: str, content: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), content)

"""What the watcher's metrics port shows."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from libs.runtime.notice_socket import NoticeServer
from services.preemption_watcher.bus_link import BusLink
from services.preemption_watcher.watcher_metrics import watcher_metrics


def test_every_source_shows_how_it_does_and_a_watcher_what_it_holds(
    a_watcher: Callable[..., Any], a_reading: Callable[..., Any]
) -> None:
    watcher = a_watcher()
    watcher.observe(a_reading(), unreadable=("no id",), is_whole=False)
    watcher.fail(source="other")
    socket = NoticeServer(Path("unused"), on_connected=lambda _: None)
    shown = watcher_metrics(watcher.core, BusLink(no_broker), socket).exposition().decode()
    for line in (
        "tideserve_watcher_notices_held 1.0",
        "tideserve_watcher_notices_raised_total 1.0",
        "tideserve_watcher_messages_dropped_total 0.0",
        "tideserve_watcher_workers_connected 0.0",
        'tideserve_watcher_source_payloads_unreadable_total{source="cloud"} 1.0',
        'tideserve_watcher_source_failures_in_row{source="other"} 1.0',
        'tideserve_watcher_source_failures_in_row{source="cloud"} 0.0',
    ):
        assert line in shown


def test_what_is_published_before_there_is_a_broker_or_while_it_is_away_is_counted() -> None:
    async def run() -> None:
        hub = MemoryHub()

        async def connect() -> MemoryBus:
            return MemoryBus(hub)

        link = BusLink(connect)
        await link.publish("tide.v1.notice.a", b"early")
        assert (link.messages_dropped, link.is_connected) == (1, False)
        heard = await link.subscribe("tide.v1.notice.a")
        hub.is_reachable = False
        await link.publish("tide.v1.notice.a", b"lost")
        hub.is_reachable = True
        await link.publish("tide.v1.notice.a", b"heard")
        assert (await anext(aiter(heard))).payload == b"heard"
        assert (link.messages_dropped, link.is_connected) == (2, True)
        await link.close()

    asyncio.run(run())


async def no_broker() -> MemoryBus:
    raise AssertionError("nobody connects here")

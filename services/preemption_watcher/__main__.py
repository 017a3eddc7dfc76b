"""`python -m services.preemption_watcher`: one watcher process."""

import asyncio
import platform
import signal
import sys

import structlog

from libs.contracts.subjects import alias_of
from libs.kernel.units import NS_PER_MS
from libs.runtime.clock import SystemClock
from libs.runtime.nats_bus import NatsBus
from libs.runtime.process import run_service
from libs.runtime.service import log_as, read_settings, status_port
from services.preemption_watcher.bus_link import BusLink
from services.preemption_watcher.config import WatcherConfig
from services.preemption_watcher.core import WatcherCore
from services.preemption_watcher.options import MANUAL, WatcherOptions
from services.preemption_watcher.shell import WatcherShell
from services.preemption_watcher.sources.open_sources import open_sources
from services.preemption_watcher.sources.signals import SignalSource
from services.preemption_watcher.sources.source import NoticeSource
from services.preemption_watcher.watcher_metrics import watcher_metrics

_log = structlog.get_logger(__name__)


async def serve(stopping: asyncio.Event) -> None:
    """Read the settings, open the sources, and watch until told to stop. Raises: ConfigError."""
    config = read_settings(WatcherConfig, service="preemption_watcher")
    node_id = alias_of(config.node_id or platform.node())
    log_as(config, service="preemption_watcher", node_id=node_id)
    clock = SystemClock()
    sources = open_sources(config, node_id=node_id, clock=clock)
    core = WatcherCore(_options(config, sources, node_id=node_id))
    link = BusLink(lambda: NatsBus.connect(config.nats_url, name=f"watcher-{node_id}"))
    shell = WatcherShell(
        node_id=node_id,
        core=core,
        sources=sources,
        link=link,
        clock=clock,
        socket_path=config.socket_path,
    )
    metrics = watcher_metrics(core, link, shell.socket)
    try:
        async with status_port(config, metrics, is_ready=lambda: link.is_connected):
            _log.info("watcher_ready", sources=list(config.sources))
            async with asyncio.TaskGroup() as group:
                hearing = group.create_task(_hear_signals(sources, stopping))
                await shell.run(stopping)
                hearing.cancel()
    finally:
        await link.close()


def _options(config: WatcherConfig, sources: list[NoticeSource], *, node_id: str) -> WatcherOptions:
    grace_ms_max = config.grace_ms_max
    return WatcherOptions(
        node_id=node_id,
        sources=tuple(source.options for source in sources),
        is_manual_allowed=MANUAL in config.sources,
        safety_ns=config.safety_ms * NS_PER_MS,
        grace_ns_max=None if grace_ms_max is None else grace_ms_max * NS_PER_MS,
        stop_after_ns=config.signal_graces_ns.get("SIGTERM"),
    )


async def _hear_signals(sources: list[NoticeSource], stopping: asyncio.Event) -> None:
    """Pass signals on to the source that takes them for notices.

    SIGTERM is the process's own affair first, and arrives here as `stopping`.
    """
    signals = next((source for source in sources if isinstance(source, SignalSource)), None)
    if signals is None:
        return
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, signals.hear, "SIGUSR1")
    await stopping.wait()
    signals.hear("SIGTERM")


if __name__ == "__main__":
    sys.exit(run_service(serve, name="preemption_watcher"))

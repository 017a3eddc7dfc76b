"""Three brokers as the chart runs them, one of which dies: what was appended is still there."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from libs.kernel.errors import Unavailable
from libs.kernel.units import MIB
from libs.runtime.bus import StreamOptions
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server_search import find_nats_server

T = TypeVar("T")

SERVERS = 3
READY_TIMEOUT_S = 30.0
OUTAGE_S_MAX = 30.0
STREAM = StreamOptions(
    name="KEPT",
    subjects=("tide.v1.kept.*",),
    messages_max=1000,
    bytes_max=MIB,
    age_max_ns=None,
)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


class Cluster:
    """nats-servers on loopback that know one another."""

    def __init__(self, folder: Path) -> None:
        self.ports = free_ports(SERVERS)
        routes = [f"nats://127.0.0.1:{port}" for port in free_ports(SERVERS)]
        binary = find_nats_server().binary
        self.processes: list[subprocess.Popen[bytes]] = []
        for number, (port, route) in enumerate(zip(self.ports, routes, strict=True)):
            configuration = folder / f"{number}.conf"
            configuration.write_text(
                f"server_name: kept-{number}\nlisten: 127.0.0.1:{port}\n"
                f"jetstream {{ store_dir: {folder}/{number} }}\n"
                f"cluster {{ name: kept, listen: {route.removeprefix('nats://')}"
                f", routes: {[*routes]} }}\n".replace("'", '"')
            )
            self.processes.append(
                subprocess.Popen([binary, "--config", configuration, "--log", folder / "log"])
            )

    @property
    def urls(self) -> str:
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.ports)

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@asynccontextmanager
async def connected(cluster: Cluster) -> AsyncIterator[NatsBus]:
    bus = await NatsBus.connect(cluster.urls, name="test-cluster", stream_replicas=SERVERS)
    try:
        yield bus
    finally:
        await bus.close()


async def until_done(attempt: Callable[[], Awaitable[T]], *, within_s: float) -> T:
    """Repeat what a cluster without a leader refuses for the moment."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await attempt()
            except Unavailable:
                await asyncio.sleep(0.1)


@pytest.mark.timeout(120)
async def test_with_three_copies_nothing_appended_is_lost_with_one_broker(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        async with connected(cluster) as bus:
            await until_done(lambda: bus.ensure_stream(STREAM), within_s=READY_TIMEOUT_S)
            await bus.append("tide.v1.kept.a", b"before")
            cluster.processes[0].kill()
            await until_done(lambda: bus.append("tide.v1.kept.a", b"after"), within_s=OUTAGE_S_MAX)
            stored = await until_done(
                lambda: bus.read_subject("KEPT", "tide.v1.kept.a"), within_s=OUTAGE_S_MAX
            )
        payloads = [message.payload for message in stored]
        assert payloads[0] == b"before"
        assert payloads[-1] == b"after"
    finally:
        cluster.stop()

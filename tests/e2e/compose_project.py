"""A compose project of a test's own: its containers, its fleet as reports show it, and its load."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from libs.client.client import TideClient
from libs.contracts import subjects
from libs.contracts.preemption import NOTICE_ANSWERS, NoticeRequestAccepted, RaiseNotice
from libs.contracts.reports import WorkerReport
from libs.contracts.wire import encode
from libs.kernel.units import NS_PER_S
from libs.runtime.clock import SystemClock
from libs.runtime.nats_bus import NatsBus
from services.launcher.demo_load import Load, StreamRecord, wait_until
from services.launcher.demo_requests import DemoRequest
from services.launcher.demo_verdict import compare
from services.launcher.fleet_view import FleetView

ROOT = Path(__file__).resolve().parents[2]
FILES = ("docker-compose.yml", "tests/e2e/two_nodes.yml")
BASE_IMAGES = ("python:3.11-slim-bookworm", "nats:2.10-alpine")
WHEELS = ROOT / "deploy" / "wheels"
BUILD_TIMEOUT_S = 1800.0
"""Packages for seven images, of which nothing may be cached."""
PROBE_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 900.0
READY_TIMEOUT_S = 900.0
"""On two idle cores a fleet is up in 30 s; with twenty others on them it took six times as long."""
STREAM_TIMEOUT_S = 900.0
"""Within it an answer must end that lives through a strike while workers start beside it."""
ALIAS = "tide-tiny"


def has_image(name: str) -> bool:
    """Whether the engine has this image; nothing is ever pulled."""
    command = ["docker", "image", "inspect", name]
    return subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S).returncode == 0


def why_not() -> str | None:
    """Return what is missing to run containers here, or None."""
    if shutil.which("docker") is None:
        return "no docker command"
    for command, missing in (
        (["docker", "info"], "no Docker engine answers"),
        (["docker", "compose", "version"], "docker has no compose v2 plugin"),
    ):
        if subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S).returncode != 0:
            return missing
    return next((f"no base image {name}" for name in BASE_IMAGES if not has_image(name)), None)


def lay_torch_wheel_ready() -> None:
    """Give the build the torch wheel of this host's own wheel folder, if it has one."""
    pin = next(
        line.replace("==", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("torch==")
    )
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        for wheel in Path(folder).glob(f"{pin}*.whl") if Path(folder).is_dir() else ():
            if not (WHEELS / wheel.name).exists():
                shutil.copy2(wheel, WHEELS / wheel.name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def docker(*arguments: str) -> str:
    """Run one docker command and return what it prints."""
    result = subprocess.run(
        ["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@dataclass
class ComposeProject:
    """Containers under a name of their own, on free ports of loopback."""

    name: str
    nats_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    prometheus_port: int = field(default_factory=free_port)
    grafana_port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.nats_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def network(self) -> str:
        return f"{self.name}_fleet"

    def build(self) -> None:
        """Build the images of all services."""
        self.compose("--profile", "spot", "build", timeout_s=BUILD_TIMEOUT_S)

    def down(self) -> None:
        """Remove the containers and what they kept."""
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "5")

    def compose(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run one compose command on this project; nothing of the caller's `.env` counts."""
        environment = {
            **{name: text for name, text in os.environ.items() if "TIDESERVE_" not in name},
            "TIDESERVE_NATS_PORT": str(self.nats_port),
            "TIDESERVE_HTTP_PORT": str(self.http_port),
            "TIDESERVE_PROMETHEUS_PORT": str(self.prometheus_port),
            "TIDESERVE_GRAFANA_PORT": str(self.grafana_port),
            **self.settings,
        }
        project = ("--project-name", self.name, "--project-directory", ".")
        files = [part for file in FILES for part in ("--file", file)]
        result = subprocess.run(
            ["docker", "compose", *project, "--env-file", os.devnull, *files, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result.stdout

    def containers(self, *services: str) -> list[str]:
        """Containers of these services that run now."""
        return self.compose("ps", "--quiet", *services).split()

    def container_of(self, worker_id: str) -> str:
        """Return the container in which this worker runs; its log names the id."""
        for container in self.containers():
            logs = subprocess.run(["docker", "logs", container], capture_output=True, text=True)
            if "worker_ready" in logs.stderr and worker_id in logs.stderr:
                return container
        raise AssertionError(f"no container runs {worker_id}")


class ComposeFleet:
    """The fleet that runs in a project's containers, and the load on it."""

    def __init__(self, project: ComposeProject, bus: NatsBus, view: FleetView, client: TideClient):
        self.project = project
        self.view = view
        self._bus = bus
        self._client = client

    def workers(self, *, node_id: str | None = None) -> list[WorkerReport]:
        """Workers heard of lately, of one node or of all."""
        return [w for w in self.view.workers() if node_id in (None, w.node_id)]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until reports say so."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not condition():
                await self.view.wait_for_change()

    async def until_workers(self, count: int) -> None:
        """Wait until exactly so many workers, some router and some gateway report."""
        await self.until(
            lambda: (
                len(self.view.workers()) == count
                and bool(self.view.routers() and self.view.gateways())
            )
        )

    async def ask(self, requests: Sequence[DemoRequest]) -> list[StreamRecord]:
        """Stream all answers at once and return what came of them."""
        return await self._load().run(requests, is_paced=False)

    async def answers_under(
        self, strike: Callable[[], Awaitable[None]], requests: Sequence[DemoRequest]
    ) -> list[StreamRecord]:
        """Ask again and again until the strike is over; it begins in the midst of a round.

        Returns the answers of all rounds.
        """
        load = self._load()
        asking = asyncio.create_task(load.run(requests, is_paced=False))
        is_flowing = await wait_until(lambda: load.tokens > 2 * len(requests), run=asking)
        assert is_flowing, "the answers ended before there was anything to disturb"
        striking = asyncio.create_task(_run(strike))
        records = await asking
        while not striking.done():
            records += await self.ask(requests)
        await striking
        return records

    async def notify(self, node_id: str, *, grace_s: int) -> None:
        """Have the node's watcher give notice of its end."""
        request = RaiseNotice(
            notice_id=f"drill-{node_id}", node_id=node_id, grace_ns=grace_s * NS_PER_S
        )
        reply = await self._bus.request(subjects.notice_request(node_id), encode(request))
        assert isinstance(NOTICE_ANSWERS.decode(reply.payload), NoticeRequestAccepted)

    def _load(self) -> Load:
        return Load(
            client=self._client,
            http_url=self.project.http_url,
            alias=ALIAS,
            clock=SystemClock(),
            run_name=f"{self.project.name}-{os.urandom(4).hex()}",
            stream_timeout_s=STREAM_TIMEOUT_S,
        )


async def _run(strike: Callable[[], Awaitable[None]]) -> None:
    await strike()


@asynccontextmanager
async def connected(project: ComposeProject) -> AsyncIterator[ComposeFleet]:
    """Connect to the project's broker and listen to its fleet."""
    bus = await NatsBus.connect(project.nats_url, name="test-compose")
    view = FleetView()
    try:
        await view.start(bus)
        async with TideClient(bus) as client:
            yield ComposeFleet(project, bus, view, client)
    finally:
        await view.close()
        await bus.close()


def differences(
    disturbed: Sequence[StreamRecord], undisturbed: Sequence[StreamRecord]
) -> list[str]:
    """Say of each disturbed answer that is not the undisturbed one what became of it."""
    expected = {record.request.index: record for record in undisturbed}
    return [
        f"{record.request}: {record.error or compare(record, expected[record.request.index])}"
        for record in disturbed
        if not compare(record, expected[record.request.index]).is_equal
    ]

"""The container fleet: built, scaled, and a worker's container killed mid-stream.

Runs where a Docker engine, compose v2 and the base images are present. Ports are free ones on
loopback; the project has a name of its own, so that nothing else is touched.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from libs.client.client import TideClient
from libs.kernel.units import NS_PER_S
from libs.runtime.clock import SystemClock
from libs.runtime.nats_bus import NatsBus
from services.launcher.demo_load import Load, StreamRecord, wait_until
from services.launcher.demo_requests import demo_requests
from services.launcher.demo_verdict import summarise
from services.launcher.fleet_view import FleetView

ROOT = Path(__file__).resolve().parents[2]
BASE_IMAGES = ("python:3.11-slim-bookworm", "nats:2.10-alpine")
WHEELS = ROOT / "deploy" / "wheels"
UP_TIMEOUT_S = 400.0
READY_TIMEOUT_S = 180.0
REQUESTS = 24


def why_not() -> str | None:
    """Return what is missing to run containers here, or None."""
    if shutil.which("docker") is None:
        return "no docker command"
    for command, missing in (
        (["docker", "info"], "no Docker engine answers"),
        (["docker", "compose", "version"], "docker has no compose v2 plugin"),
        *((["docker", "image", "inspect", name], f"no base image {name}") for name in BASE_IMAGES),
    ):
        if subprocess.run(command, capture_output=True, timeout=30).returncode != 0:
            return missing
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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


@dataclass(frozen=True)
class Containers:
    """A compose project of this test's own."""

    project: str
    nats_port: int
    http_port: int

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.nats_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def compose(self, *arguments: str, timeout_s: float = UP_TIMEOUT_S) -> str:
        environment = {
            **os.environ,
            "TIDESERVE_NATS_PORT": str(self.nats_port),
            "TIDESERVE_HTTP_PORT": str(self.http_port),
        }
        result = subprocess.run(
            ["docker", "compose", "--project-name", self.project, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result.stdout

    def container_of(self, worker_id: str) -> str:
        """Return the container in which this worker runs; its log names the id."""
        for container in self.compose("ps", "--quiet", "gpu-worker").split():
            logs = subprocess.run(["docker", "logs", container], capture_output=True, text=True)
            if worker_id in logs.stdout + logs.stderr:
                return container
        raise AssertionError(f"no container runs {worker_id}")


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    missing = why_not()
    if missing is not None:
        pytest.skip(f"cannot run containers: {missing}")
    lay_torch_wheel_ready()
    project = Containers(f"tideserve-test-{os.getpid()}", free_port(), free_port())
    try:
        project.compose("build")
        project.compose("up", "--detach", "--scale", "gpu-worker=2")
        yield project
    finally:
        project.compose("down", "--volumes", "--timeout", "20")


async def until_workers(view: FleetView, count: int) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S):
        while len(view.workers()) < count or not view.routers() or not view.gateways():
            await view.wait_for_change()


async def watched(containers: Containers, *, workers: int) -> tuple[NatsBus, FleetView]:
    """Connect and return once so many workers, a router and a gateway report."""
    bus = await NatsBus.connect(containers.nats_url, name="test-compose")
    view = FleetView()
    await view.start(bus)
    await until_workers(view, workers)
    return bus, view


@pytest.mark.timeout(600)
def test_the_container_fleet_answers_over_nats_and_over_http(containers: Containers) -> None:
    async def ask() -> None:
        bus, view = await watched(containers, workers=2)
        async with TideClient(bus) as client:
            answer = await client.complete(
                model="tide-tiny", prompt="The tide", max_tokens=16, temperature=0.0
            )
        assert len(answer.token_ids) == answer.usage.completion_tokens > 0
        await view.close()
        await bus.close()
        async with httpx.AsyncClient(base_url=containers.http_url, timeout=60) as http:
            body = {"model": "tide-tiny", "prompt": "The tide", "max_tokens": 16, "temperature": 0}
            response = await http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["text"] == answer.text

    asyncio.run(ask())


@pytest.mark.timeout(600)
def test_a_killed_worker_container_loses_nothing(containers: Containers) -> None:
    containers.compose("up", "--detach", "--no-recreate", "--scale", "gpu-worker=3")

    async def strike() -> tuple[list[StreamRecord], list[StreamRecord]]:
        bus, view = await watched(containers, workers=3)
        requests = demo_requests(REQUESTS, seed=3, duration_ns=5 * NS_PER_S)
        async with TideClient(bus) as client:

            def a_load(name: str) -> Load:
                return Load(
                    client=client,
                    http_url=containers.http_url,
                    alias="tide-tiny",
                    clock=SystemClock(),
                    run_name=name,
                )

            undisturbed = await a_load("undisturbed").run(requests, is_paced=False)
            tokens = sum(len(record.token_at_ns) for record in undisturbed)
            load = a_load("disturbed")
            running = asyncio.create_task(load.run(requests, is_paced=True))
            assert await wait_until(
                lambda: (
                    load.tokens > tokens // 4 and any(r.sessions_running for r in view.workers())
                ),
                run=running,
            )
            victim = max(view.workers(), key=lambda report: report.sessions_running)
            container = await asyncio.to_thread(containers.container_of, victim.worker_id)
            assert not running.done()
            await asyncio.to_thread(
                subprocess.run, ["docker", "kill", container], check=True, capture_output=True
            )
            disturbed = await running
        await view.close()
        await bus.close()
        return disturbed, undisturbed

    disturbed, undisturbed = asyncio.run(strike())
    summary = summarise(disturbed, undisturbed, kills=1, kills_expected=1)
    assert summary.ok, json.dumps(summary.as_dictionary())
    assert any(record.gap_ns_max > NS_PER_S // 4 for record in disturbed), "no stream was struck"

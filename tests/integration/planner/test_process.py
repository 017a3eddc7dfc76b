"""Real planner processes on a real nats-server; the test is their fleet."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.contracts import subjects
from libs.contracts.placement import (
    PIN_ANSWERS,
    PLACEMENTS,
    PinnedShape,
    PinRefused,
    PinShape,
    Placement,
    ShapePinned,
)
from libs.contracts.wire import encode
from libs.kernel.errors import EXIT_CONFIG_ERROR, ConfigError
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions
from libs.runtime.nats_server_search import find_nats_server

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "models" / "tide-tiny"
ALIAS = "tide-tiny"
EXIT_WAIT_S = 30


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    try:
        program = find_nats_server(environment=dict(os.environ), may_fetch=False)
    except ConfigError as error:
        pytest.skip(str(error))
    server = NatsServer(ServerOptions(data_folder=tmp_path), program=program)
    server.start()
    yield server
    server.stop()


def start_planner(server_url: str, **settings: str) -> subprocess.Popen[str]:
    fields = {"MODEL": str(MODEL), "NATS_URL": server_url, **settings}
    return subprocess.Popen(
        [sys.executable, "-m", "services.planner"],
        cwd=ROOT,
        env={**os.environ, **{f"PLANNER__{name}": value for name, value in fields.items()}},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


class Planners:
    """Processes of the test, which ends them."""

    def __init__(self, server: NatsServer) -> None:
        self._url = server.url
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, planner_id: str, **settings: str) -> subprocess.Popen[str]:
        process = start_planner(self._url, PLANNER_ID=planner_id, **settings)
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def planners(server: NatsServer) -> Iterator[Planners]:
    started = Planners(server)
    yield started
    started.end()


@asynccontextmanager
async def a_fleet(server: NatsServer, fleet_end: type[Any]) -> AsyncIterator[Any]:
    bus = await NatsBus.connect(server.url, name="fleet")
    try:
        async with fleet_end(bus).running() as fleet:
            yield fleet
    finally:
        await bus.close()


async def committed(fleet: Any) -> Placement:
    bucket = await fleet.bus.ensure_bucket(subjects.PLACEMENT_BUCKET, bytes_max=2**26)
    entry = await bucket.get(subjects.placement_key(ALIAS))
    assert entry is not None
    placement = PLACEMENTS.decode(entry.value)
    assert isinstance(placement, Placement)
    return placement


async def test_workers_are_placed_noticed_lost_and_replaced(
    server: NatsServer, planners: Planners, fleet_end: type[Any]
) -> None:
    planners.start("planner")
    async with a_fleet(server, fleet_end) as fleet:
        for worker_id in ("a", "b", "c"):
            fleet.add_worker(worker_id)
        await fleet.until(lambda: fleet.placed() == {"a", "b", "c"})
        await fleet.notice("node-a")
        await fleet.until(lambda: fleet.placed() == {"b", "c"})
        del fleet.workers["b"]
        await fleet.until(lambda: fleet.placed() == {"c"})
        assert await committed(fleet) == fleet.placements[-1]
        await fleet.bus.publish(subjects.worker_report("x"), b"\xffgarbage")
        await fleet.bus.publish(subjects.notice("node-c"), b"{}")
        fleet.add_worker("d")
        await fleet.until(lambda: fleet.placed() == {"c", "d"})


async def test_a_frozen_leader_is_replaced_and_commits_nothing_when_it_wakes(
    server: NatsServer, planners: Planners, fleet_end: type[Any]
) -> None:
    first = planners.start("planner-a")
    async with a_fleet(server, fleet_end) as fleet:
        for worker_id in ("a", "b"):
            fleet.add_worker(worker_id)
        await fleet.until(lambda: fleet.placed() == {"a", "b"})
        (old,) = fleet.leaders
        replicas = fleet.placements[-1].replicas
        planners.start("planner-b")
        await fleet.until(lambda: len(fleet.planners) == 2)
        first.send_signal(signal.SIGSTOP)
        await fleet.until(lambda: any(i != old for i in fleet.leaders))
        (new,) = [i for i in fleet.leaders if i != old]
        assert (await committed(fleet)).planner_id == new
        assert (await committed(fleet)).replicas == replicas
        await fleet.notice("node-a")  # waits at the frozen one, too
        await fleet.until(lambda: fleet.placed() == {"b"})
        before = await committed(fleet)
        first.send_signal(signal.SIGCONT)
        await fleet.until(lambda: fleet.leaders == [new])
        await asyncio.sleep(1.0)  # a time in which it would have planned: ten debounces
        assert await committed(fleet) == before
        assert {p.planner_id for p in fleet.placements if p.plan_revision == before.plan_revision}


async def test_a_planner_that_starts_anew_goes_on_from_the_committed_placement(
    server: NatsServer, planners: Planners, fleet_end: type[Any]
) -> None:
    process = planners.start("planner")
    async with a_fleet(server, fleet_end) as fleet:
        for worker_id in ("a", "b"):
            fleet.add_worker(worker_id)
        await fleet.until(lambda: fleet.placed() == {"a", "b"})
        before = await committed(fleet)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=EXIT_WAIT_S) == 0
        planners.start("planner")
        await fleet.until(lambda: len(fleet.leaders) == 2)  # the old one's last report, the new
        await asyncio.sleep(1.5)  # past the time in which a new leader listens
        after = await committed(fleet)
        assert after.replicas == before.replicas
        assert after.plan_revision == before.plan_revision


async def test_an_operator_pins_a_shape_and_hears_what_cannot_be(
    server: NatsServer, planners: Planners, fleet_end: type[Any]
) -> None:
    planners.start("planner")
    async with a_fleet(server, fleet_end) as fleet:
        for worker_id in ("a", "b"):
            fleet.add_worker(worker_id)
        await fleet.until(lambda: fleet.placed() == {"a", "b"})

        async def ask(stages: int, shards: int) -> Any:
            pin = PinShape(shape=PinnedShape(stages=stages, shards=shards))
            reply = await fleet.bus.request(subjects.planner_control(ALIAS), encode(pin))
            return PIN_ANSWERS.decode(reply.payload)

        assert isinstance(await ask(5, 1), PinRefused)  # the bundled model has four layers
        assert isinstance(await ask(1, 3), PinRefused)
        assert isinstance(await ask(2, 1), ShapePinned)
        await fleet.until(lambda: len(fleet.placements[-1].replicas) == 1)
        assert fleet.placements[-1].replicas[0].stages == 2


def test_a_wrong_setting_is_one_line_and_exit_64() -> None:
    process = start_planner("nats://127.0.0.1:1", MODEL="/nowhere")
    _, errors = process.communicate(timeout=EXIT_WAIT_S)
    assert process.returncode == EXIT_CONFIG_ERROR
    assert "/nowhere/config.json" in errors.strip().splitlines()[-1]

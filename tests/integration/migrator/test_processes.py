"""Real migrator processes on a real nats-server: take-over, a frozen owner, a wrong setting."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.contracts.handover_record import HandoverState
from libs.contracts.placement import Placement, Policy, ReplicaPlacement
from libs.kernel.errors import EXIT_CONFIG_ERROR, ConfigError
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions
from libs.runtime.nats_server_search import find_nats_server

ROOT = Path(__file__).parents[3]
EXIT_WAIT_S = 20
FIRST = ReplicaPlacement(
    replica_id="replica-1",
    replica_epoch=1,
    stages=1,
    shards=2,
    worker_ids=("worker-a", "worker-b"),
)
SECOND = ReplicaPlacement(
    replica_id="replica-2",
    replica_epoch=2,
    stages=2,
    shards=1,
    worker_ids=("worker-b", "worker-c"),
    inherits=("replica-1",),
)


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


@pytest.fixture
def start_migrator(server: NatsServer) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts migrator processes; whatever is left of them is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        fields = {"NATS_URL": server.url, "MIGRATOR_ID": name, "ALIAS": "tide"}
        environment = {f"MIGRATOR__{key}": value for key, value in fields.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "services.migrator"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@asynccontextmanager
async def a_fleet(live_fleet: Callable[..., Any], server: NatsServer) -> AsyncIterator[Any]:
    """Three workers and nobody who commands them."""
    bus = await NatsBus.connect(server.url, name="fleet")
    fleet = await live_fleet(bus)
    try:
        for worker_id in ("worker-a", "worker-b", "worker-c"):
            await fleet.add_worker(worker_id)
        yield fleet
    finally:
        await fleet.close()
        await bus.close()


def placement(revision: int, replica: ReplicaPlacement) -> Placement:
    return Placement(
        plan_revision=revision, alias="tide", policy=Policy.TIDESERVE, replicas=(replica,)
    )


async def test_a_frozen_owner_that_wakes_after_the_take_over_changes_nothing(
    live_fleet: Callable[..., Any],
    server: NatsServer,
    start_migrator: Callable[[str], subprocess.Popen[str]],
) -> None:
    async with a_fleet(live_fleet, server) as fleet:
        first = start_migrator("first")
        await fleet.place(placement(1, FIRST))
        await fleet.until(lambda record: record.plan_revision_reached == 1)
        start_migrator("second")
        await asyncio.sleep(2.0)  # the second hears the first and stands by
        await fleet.place(placement(2, SECOND))
        await fleet.until(
            lambda record: any(h.state is HandoverState.LOADING for h in record.under_way)
        )
        first.send_signal(signal.SIGSTOP)
        reached = await fleet.until(lambda record: record.plan_revision_reached == 2)
        assert reached.migrator_id.startswith("second-")
        assert reached.handover_epoch == 2
        assert fleet.workers["worker-c"].serving.is_serving
        obeyed = {name: len(worker.obeyed) for name, worker in fleet.workers.items()}
        first.send_signal(signal.SIGCONT)
        await asyncio.sleep(2.0)  # time enough to do harm
        assert await fleet.record() == reached
        assert {name: len(worker.obeyed) for name, worker in fleet.workers.items()} == obeyed
        fleet.check()
        first.terminate()
        assert first.wait(EXIT_WAIT_S) == 0


async def test_a_successor_ends_what_a_killed_owner_began(
    live_fleet: Callable[..., Any],
    server: NatsServer,
    start_migrator: Callable[[str], subprocess.Popen[str]],
) -> None:
    async with a_fleet(live_fleet, server) as fleet:
        first = start_migrator("first")
        await fleet.place(placement(1, FIRST))
        await fleet.until(lambda record: record.plan_revision_reached == 1)
        await fleet.place(placement(2, SECOND))
        await fleet.until(
            lambda record: any(h.state is HandoverState.LOADING for h in record.under_way)
        )
        first.kill()
        start_migrator("second")
        reached = await fleet.until(lambda record: record.plan_revision_reached == 2)
        assert reached.migrator_id.startswith("second-")
        assert [story.state for story in reached.ended] == [HandoverState.DONE] * 2
        assert reached.ended[-1].totals.weight_bytes_planned == 2 * 300
        fleet.check()


def test_a_wrong_setting_is_one_line_and_exit_code_64() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "services.migrator"],
        cwd=ROOT,
        env={**os.environ, "MIGRATOR__MODEL": ""},
        capture_output=True,
        text=True,
        timeout=EXIT_WAIT_S,
        check=False,
    )
    assert process.returncode == EXIT_CONFIG_ERROR
    assert process.stderr.splitlines()[-1].startswith("migrator: model: ")

"""The broker away for 8 s under load costs latency only."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.runtime.nats_server import NatsServer, ServerOptions
from services.launcher.fleet import Fleet

OUTAGE_S = 8.0
AFTERWARDS_S = 8.0
"""Longer than the allowance after an outage: a peer wrongly believed dead would show by then."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    folder: Path = tmp_path_factory.mktemp("nats")
    with NatsServer(ServerOptions(data_folder=folder)) as server:
        yield server


@pytest.fixture(scope="module")
def under_test(broker: NatsServer, start_fleet: Callable[..., Any]) -> Any:
    return start_fleet(workers=2, routers=2, nats_url=broker.url)


def test_a_broker_killed_for_eight_seconds_loses_no_request_and_no_worker(
    broker: NatsServer, under_test: Any
) -> None:
    fleet: Fleet = under_test.fleet
    ids_before = fleet_ids(fleet)

    async def kill_broker_and_start_it_again(_: Fleet) -> None:
        await asyncio.to_thread(broker.kill)
        await asyncio.sleep(OUTAGE_S)  # the outage itself
        # A server dies with the thread that started it: this one, which outlives the test.
        broker.start()

    under_test.check(kill_broker_and_start_it_again)
    under_test.runner.run(asyncio.sleep(AFTERWARDS_S))
    assert fleet_ids(fleet) == ids_before
    assert [r.workers_lost for r in fleet.view.routers()] == [0, 0]
    assert [r.sessions_adopted for r in fleet.view.routers()] == [0, 0]


def fleet_ids(fleet: Fleet) -> list[str]:
    workers = [report.worker_id for report in fleet.view.workers()]
    return sorted(workers + [report.router_id for report in fleet.view.routers()])

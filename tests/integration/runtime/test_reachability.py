"""Whether the broker knows of a worker that died, on both kinds of bus."""

import pytest

from libs.contracts import subjects
from libs.runtime.reachability import is_worker_reachable


async def test_a_worker_is_reachable_exactly_while_it_listens(world):
    worker_id = world.name("worker")
    async with world.bus() as bus, world.bus() as workers_bus:
        assert not await is_worker_reachable(bus, worker_id, asker_id="planner-1")
        subscription = await workers_bus.subscribe(subjects.worker_control(worker_id))
        assert await is_worker_reachable(bus, worker_id, asker_id="planner-1")
        await subscription.close()
        await workers_bus.flush()
        assert not await is_worker_reachable(bus, worker_id, asker_id="planner-1")


async def test_a_broker_that_is_away_makes_nobody_unreachable(world):
    if world.is_nats:
        pytest.skip("an outage of nats-server is the matter of test_nats_reconnect")
    async with world.bus() as bus:
        world.hub.is_reachable = False
        assert await is_worker_reachable(bus, "worker-1", asker_id="planner-1")

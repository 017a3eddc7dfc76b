"""The planner gets nodes from the cloud that the launcher plays: processes that come and go."""

import asyncio
from pathlib import Path

import pytest

from libs.contracts.local_cloud import CloudDone, KillNode
from services.launcher.fleet import Fleet
from services.launcher.local_cloud import LocalCloud
from services.launcher.model_source import bundled_model
from services.launcher.recipes import FleetOptions, PlannedOptions

DEADLINE_S = 90.0

pytestmark = pytest.mark.timeout(240)


async def nodes_report(fleet: Fleet, *, but: str, nodes: int) -> None:
    """Wait until so many nodes other than this one have a worker that reports."""
    async with asyncio.timeout(DEADLINE_S):
        while len({w.node_id for w in fleet.view.workers()} - {but}) < nodes:
            await fleet.view.wait_for_change()


async def serves_without(fleet: Fleet, worker_ids: set[str]) -> None:
    """Wait until a replica serves on none of these workers."""
    async with asyncio.timeout(DEADLINE_S):
        while not any(w.is_serving and w.worker_id not in worker_ids for w in fleet.view.workers()):
            await fleet.view.wait_for_change()


def test_a_node_that_dies_is_replaced_by_one_that_serves(tmp_path: Path) -> None:
    asyncio.run(_kill_the_only_node(tmp_path))


async def _kill_the_only_node(folder: Path) -> None:
    options = FleetOptions(
        model=bundled_model(),
        data_folder=folder,
        gateways=0,
        offline_queues=0,
        http_port=0,
        planned=PlannedOptions(nodes=1, provisioned_nodes_max=2),
    )
    fleet = Fleet(options, say=lambda _: None)
    cloud = LocalCloud(fleet, say=lambda _: None)
    try:
        await fleet.start()
        await cloud.start()
        [first] = fleet.node_ids
        # One node to spare besides the one that is needed, as the planner is told.
        await nodes_report(fleet, but=first, nodes=1)
        dead = {w.worker_id for w in fleet.view.workers() if w.node_id == first}
        answer = await cloud.carry_out(KillNode(operation_id="kill", node_id=first))
        assert isinstance(answer, CloudDone)
        await serves_without(fleet, dead)
        await nodes_report(fleet, but=first, nodes=2)
        assert first not in fleet.node_ids
    finally:
        await cloud.close()
        await fleet.stop()

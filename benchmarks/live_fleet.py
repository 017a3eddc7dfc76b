"""A fleet of real processes for the benchmarks that compare policies live."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from libs.contracts import subjects
from libs.contracts.handover_record import HANDOVER_RECORDS, HandoverStory
from libs.contracts.local_cloud import AddNode, PreemptNode
from libs.contracts.placement import PinnedShape, PinShape, Policy
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S, seconds
from services.launcher.demo_timeline import shape_of
from services.launcher.fleet import Fleet
from services.launcher.local_cloud import LocalCloud
from services.launcher.model_source import ModelSource
from services.launcher.recipes import FleetOptions, PlannedOptions
from services.launcher.shape import pin_shape
from services.migrator.ports import BUCKET_BYTES_MAX

ALIAS: Final = "random-llama-100m"
READY_NS: Final = 120 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFleet:
    """A fleet that serves in a pinned shape, and the cloud that gives and takes its nodes."""

    fleet: Fleet
    cloud: LocalCloud
    pinned: PinnedShape

    async def wait_for_replicas(self, replicas: int) -> None:
        """Return once exactly so many replicas serve. Raises: TimeoutError."""
        wanted = f"{replicas} x (P{self.pinned.stages} M{self.pinned.shards})"
        async with asyncio.timeout(seconds(READY_NS)):
            while shape_of(self.fleet.view.workers()) != wanted:
                await self.fleet.view.wait_for_change()

    async def add_node(self) -> None:
        """Start one more node."""
        await self.cloud.carry_out(AddNode(operation_id="add"))

    async def preempt_oldest(self, *, grace_ms: int) -> None:
        """Give notice to the node that has been there longest."""
        node_id = self.fleet.node_ids[0]
        operation_id = f"preempt-{node_id}"
        await self.cloud.carry_out(
            PreemptNode(operation_id=operation_id, node_id=node_id, grace_ms=grace_ms)
        )

    async def handovers_ended(self) -> tuple[HandoverStory, ...]:
        """Return what the migrator's record tells of the latest hand-overs, the oldest first."""
        bucket = await self.fleet.bus.ensure_bucket(
            subjects.HANDOVER_BUCKET, bytes_max=BUCKET_BYTES_MAX
        )
        entry = await bucket.get(subjects.handover_key(ALIAS))
        return () if entry is None else HANDOVER_RECORDS.decode(entry.value).ended


@asynccontextmanager
async def live_fleet(
    model_folder: Path, data_folder: Path, *, policy: Policy, nodes: int, pinned: PinnedShape
) -> AsyncIterator[LiveFleet]:
    """Start a fleet, pin its shape, wait until it serves, and end it afterwards."""
    options = FleetOptions(
        model=ModelSource(folder=model_folder, alias=ALIAS),
        data_folder=data_folder,
        gateways=0,
        http_port=0,
        is_restarting=False,
        planned=PlannedOptions(nodes=nodes, policy=policy),
    )
    fleet = Fleet(options, say=lambda _: None)
    cloud = LocalCloud(fleet, say=lambda _: None)
    live = LiveFleet(fleet=fleet, cloud=cloud, pinned=pinned)
    pinning = asyncio.create_task(_pin_first(fleet, pinned))
    try:
        await fleet.start()
        await pinning
        await cloud.start()
        await live.wait_for_replicas(nodes // (pinned.stages * pinned.shards))
        yield live
    finally:
        pinning.cancel()
        await cloud.close()
        await fleet.stop()


async def _pin_first(fleet: Fleet, pinned: PinnedShape) -> None:
    """Pin the shape before the first placement is made: it answers once that is committed."""
    async with asyncio.timeout(seconds(READY_NS)):
        while not any(planner.is_leader for planner in fleet.view.planners()):
            await fleet.view.wait_for_change()
        while True:
            with contextlib.suppress(Unavailable):
                await pin_shape(fleet.bus, PinShape(shape=pinned), alias=ALIAS)
                return

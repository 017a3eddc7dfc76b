"""Brings a position's weights here, batch by batch, from peers and from disk at the same time."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from libs.engine.checkpoint import Checkpoint
from libs.engine.parallel.weight_store import WeightStore
from libs.kernel.errors import Unavailable
from libs.transfer.layout import TensorSlice
from services.gpu_worker.peers.network import PeerNetwork
from services.gpu_worker.weight_plan import WeightPlan

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class WeightsBrought:
    """Bytes by where they came from."""

    from_peers: int = 0
    from_disk: int = 0


class WeightLoading:
    """Fills the worker's store. Files are read on a thread of their own, beside the engine's."""

    def __init__(
        self,
        *,
        store: WeightStore,
        network: PeerNetwork,
        folder: Path,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._store = store
        self._network = network
        self._folder = folder
        self._thread = thread

    async def bring(self, plan: WeightPlan, *, replica_epoch: int) -> WeightsBrought:
        """Carry out the plan. What a peer does not send, for whatever reason, is read from disk.

        Raises: ModelLoadError if the files lack it.
        """
        brought = WeightsBrought()
        for batch in plan.batches:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(batch.from_disk, brought))
                for peer, slices in batch.from_peers.items():
                    fetching = self._fetch(
                        peer, plan.address_by_peer[peer], slices, brought, replica_epoch
                    )
                    group.create_task(fetching)
        return brought

    async def _fetch(
        self,
        peer: str,
        address: str,
        slices: tuple[TensorSlice, ...],
        brought: WeightsBrought,
        replica_epoch: int,
    ) -> None:
        try:
            summary = await self._network.fetch_weights(
                source_address=address,
                replica_epoch=replica_epoch,
                slices=slices,
                store=self._store,
            )
        except Unavailable as error:
            _log.warning("weights_not_sent", peer=peer, slices=len(slices), reason=str(error))
            await self._read(slices, brought)
        else:
            brought.from_peers += summary.bytes

    async def _read(self, slices: tuple[TensorSlice, ...], brought: WeightsBrought) -> None:
        if slices:
            loop = asyncio.get_running_loop()
            brought.from_disk += await loop.run_in_executor(
                self._thread, lambda: self._load(slices)
            )

    def _load(self, slices: tuple[TensorSlice, ...]) -> int:
        with Checkpoint(self._folder) as checkpoint:
            return self._store.load(slices, checkpoint)

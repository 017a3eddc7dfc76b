"""Makes a worker that computes what a migrator tells it: a model's outline, no weight, links."""

import asyncio
import contextlib
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from libs.engine.loading import scheduler_options_for
from libs.engine.model_config import VariantNotSupported
from libs.engine.parallel.member import ReplicaModel, read_replica_model
from libs.engine.parallel.position import positions_of
from libs.engine.scheduler import SchedulerOptions
from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS, NS_PER_S, seconds
from libs.runtime.clock import Clock
from libs.transfer.opening import open_transport
from libs.transfer.peer_secret import PeerSecret
from services.gpu_worker.config import WorkerConfig
from services.gpu_worker.engine_setup import engine_options, host_bytes_of
from services.gpu_worker.engine_thread import EngineThread
from services.gpu_worker.host_copies import HostCopies
from services.gpu_worker.hosted_positions import HostedPositions
from services.gpu_worker.member_copies import MemberCopies
from services.gpu_worker.peer_desk import PeerDesk
from services.gpu_worker.peers.kv_plan import KvGeometry
from services.gpu_worker.peers.network import PeerNetwork
from services.gpu_worker.position_memory import PositionMemory

CPU_MEMORY_SHARE: Final = 4
"""One of so many parts of a CPU machine's memory; what else runs there is not ours to know."""
GPU_MEMORY_SHARE: Final = 0.9
"""The rest is for activations and the driver."""


CLOSE_NS: Final = 5 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWorker:
    """The parts of a worker that may hold any position of its model."""

    model: ReplicaModel
    memory: PositionMemory
    engine: EngineThread
    hosted: HostedPositions
    copies: HostCopies
    desk: PeerDesk
    network: PeerNetwork

    @property
    def bounds(self) -> SchedulerOptions:
        """What the engines of all positions have in common; the least KV that one may have."""
        shape = self.model.config.shape
        blocks_min = self.memory.blocks_min(self.model)
        return scheduler_options_for(self.model.options, shape, blocks_total=blocks_min)

    async def close(self) -> None:
        """Free everything and say goodbye to the peers, unless the engine hangs."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds(CLOSE_NS)):
                await self.hosted.close()
                await self.network.stop()
        self.copies.close()


def read_outline(config: WorkerConfig) -> ReplicaModel:
    """Read what is needed before any weight, on the thread that will step.

    Raises: ConfigError for a model that cannot be cut; ModelLoadError.
    """
    torch.set_num_threads(config.threads)
    try:
        return read_replica_model(config.model, options=engine_options(config))
    except VariantNotSupported as error:
        raise ConfigError(f"placement: planned needs a model that can be cut: {error}") from None


def plan_worker(
    config: WorkerConfig,
    model: ReplicaModel,
    *,
    worker_id: str,
    clock: Clock,
    thread: ThreadPoolExecutor,
) -> PlannedWorker:
    """Put the parts together; nothing is started. Raises: ConfigError."""
    peer_host = address_of(config.peer_host)
    engine = EngineThread(clock, thread)
    memory = PositionMemory(
        memory_bytes=config.memory_bytes or _memory_bytes(model.device),
        kv_bytes_max=config.kv_bytes,
        blocks_max=config.blocks_total,
        host_bytes=host_bytes_of(config, model.device),
    )
    members = MemberCopies()
    copies = HostCopies(clock, threads=config.threads, others=members)
    hosted = HostedPositions(
        worker_id=worker_id,
        model=model,
        memory=memory,
        engine=engine,
        clock=clock,
        threads=config.threads,
        peer_host=peer_host,
        group_timeout_ns=config.group_timeout_ms * NS_PER_MS,
        copies=copies,
    )
    desk = PeerDesk()
    network = PeerNetwork(
        worker_id=worker_id,
        transport=open_transport(
            config.transport,
            host=peer_host,
            has_fast_link=config.has_gpu,
            secret=_secret(config.peer_secret_file),
        ),
        host=desk,
        engine=hosted,
        geometry=_geometry(model),
        clock=clock,
    )
    hosted.connect(network)
    members.connect(network)
    return PlannedWorker(
        model=model,
        memory=memory,
        engine=engine,
        hosted=hosted,
        copies=copies,
        desk=desk,
        network=network,
    )


def _secret(file: str | None) -> PeerSecret | None:
    return None if file is None else PeerSecret.read(Path(file))


def address_of(peer_host: str) -> str:
    """Return the address to listen on: as given, or for `auto` that of this machine's own name,
    which in a container is the address that the other containers reach.

    Raises: ConfigError if the name leads nowhere.
    """
    if peer_host != "auto":
        return peer_host
    name = socket.gethostname()
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        raise ConfigError(f"peer_host: {name} has no address: {error}") from error


def _geometry(model: ReplicaModel) -> KvGeometry:
    def rectangles(stages: int, shards: int) -> list[tuple[range, range]]:
        positions = positions_of(model.config, stages=stages, shards=shards)
        return [(position.layers, position.kv_head_range(model.config)) for position in positions]

    one_cell = replace(
        model.kv_shape(positions_of(model.config, stages=1, shards=1)[0], blocks=1),
        layers=1,
        kv_heads=1,
    )
    return KvGeometry(rectangles=rectangles, cell_bytes=one_cell.bytes_total(model.dtype))


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // CPU_MEMORY_SHARE
    _, bytes_total = torch.cuda.mem_get_info(device)
    return int(bytes_total * GPU_MEMORY_SHARE)

"""Loads the engine, warms it up, and describes the worker around it."""

import os
from dataclasses import dataclass, replace
from typing import Final

import torch

from libs.contracts.reports import Market
from libs.engine.attention import PagedAttention
from libs.engine.host_memory import HostMemory
from libs.engine.loading import EngineOptions, LoadedEngine, load_engine
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.runner import ModelRunner
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.kernel.units import NS_PER_MS
from services.gpu_worker.checkpoint_options import CheckpointOptions, HostRoom, host_room
from services.gpu_worker.config import WorkerConfig
from services.gpu_worker.options import WorkerOptions
from services.gpu_worker.step_latency import step_latency
from services.gpu_worker.yield_log import log_yield

CPU_HOST_SHARE: Final = 32
"""One of so many parts of the machine's memory: there may be many workers on it."""
GPU_HOST_SHARE: Final = 8
"""Likewise where each worker has a GPU."""
WARM_UP_TOKENS: Final = 64
"""Enough for the shapes of a prefill; the first real prompt then finds everything allocated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmEngine:
    """An engine that has run, and the scheduler whose plans it follows from now on."""

    loaded: LoadedEngine
    scheduler: Scheduler
    host_memory: HostMemory | None
    """For checkpoints; None: there are none."""
    host_room: HostRoom


def start_engine(config: WorkerConfig) -> WarmEngine:
    """Load and warm up on the calling thread, which must be the one that steps.

    torch's thread count is a setting of the thread. Raises: ConfigError, ModelLoadError.
    """
    torch.set_num_threads(config.threads)
    loaded = load_engine(config.model, options=engine_options(config))
    scheduler = Scheduler(loaded.scheduler_options)
    warm_up(scheduler, loaded.runner)
    loaded.runner.safepoints.on_yield = log_yield
    room = _host_room(config, loaded.attention)
    return WarmEngine(
        loaded=loaded,
        scheduler=scheduler,
        host_memory=HostMemory(loaded.attention, slots=room.blocks) if room.blocks else None,
        host_room=room,
    )


def host_bytes_of(config: WorkerConfig, device: torch.device) -> int:
    """Return the host memory for checkpoints of one position."""
    if config.checkpoints == "off":
        return 0
    if config.host_kv_bytes is not None:
        return config.host_kv_bytes
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory_bytes // (CPU_HOST_SHARE if device.type == "cpu" else GPU_HOST_SHARE)


def _host_room(config: WorkerConfig, attention: PagedAttention) -> HostRoom:
    blocks = attention.shape.blocks
    return host_room(
        host_bytes=host_bytes_of(config, attention.device),
        block_bytes=attention.shape.bytes_total(attention.dtype) // blocks,
        kv_blocks=blocks,
    )


def engine_options(config: WorkerConfig) -> EngineOptions:
    """Say to the engine what the operator set, and how long its steps are expected to take.

    Raises: ConfigError for a profile, ModelLoadError for a model that cannot be read.
    """
    options = EngineOptions(
        dtype=config.engine_dtype,
        device=config.device,
        kv_bytes_max=config.kv_bytes,
        blocks_total=config.blocks_total,
        block_tokens=config.block_tokens,
        step_tokens_max=config.step_tokens_max,
        sequences_max=config.sequences_max,
        context_tokens_max=config.context_tokens_max,
        coserve=config.coserve_options,
    )
    latency = step_latency(config, options)
    if latency is None:
        return options
    return replace(options, coserve=replace(options.coserve, latency=latency))


def warm_up(scheduler: Scheduler, runner: ModelRunner) -> None:
    """Run one prefill and one decode; the scheduler is empty again afterwards, its tally too."""
    prompt_tokens = min(WARM_UP_TOKENS, scheduler.options.context_tokens_max - 1)
    scheduler.add(
        SequenceRequest(
            sequence_id="warm-up",
            prompt_token_ids=(0,) * prompt_tokens,
            sampling=SamplingOptions(temperature=1.0),
            stop=StopOptions(max_tokens=2, ignore_eos=True),
            cache_salt="warm-up",
        ),
        now_ns=0,
    )
    while (plan := scheduler.schedule(now_ns=0)) is not None:
        scheduler.account(runner.run(plan), now_ns=0)
    scheduler.tally.reset()


def worker_options(
    config: WorkerConfig,
    *,
    worker_id: str,
    process_id: int,
    vocabulary_size: int,
    engine: SchedulerOptions,
    can_hold_to_schema: bool,
    room: HostRoom,
) -> WorkerOptions:
    """Say to the core who it is and what its engine can do."""
    return WorkerOptions(
        worker_id=worker_id,
        alias=config.alias_served,
        process_id=process_id,
        vocabulary_size=vocabulary_size,
        engine=engine,
        can_hold_to_schema=can_hold_to_schema,
        is_planned=config.is_planned,
        node_id=config.node_id_reported,
        zone=config.zone,
        market=Market(config.market),
        sessions_max=config.sessions_max,
        report_interval_ns=config.report_interval_ms * NS_PER_MS,
        drain_ns_max=config.drain_ms * NS_PER_MS,
        grace_reserve_ns=config.grace_reserve_ms * NS_PER_MS,
        guard_bytes_per_s=config.guard_bytes_per_s if config.is_planned else 0,
        checkpoints=CheckpointOptions(policy=config.checkpoints, room=room),
    )

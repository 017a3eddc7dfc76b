"""`python -m services.gpu_worker`: one worker process.

Exit codes: 0 drained, 64 wrong configuration or model, 70 violated invariant, 71 failed engine.
"""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import structlog

from libs.engine.safepoints import SafepointCounters
from libs.engine.scheduler import SchedulerOptions
from libs.kernel.units import NS_PER_MS
from libs.runtime.clock import SystemClock
from libs.runtime.nats_bus import NatsBus
from libs.runtime.notice_socket import NoticeListener
from libs.runtime.process import run_service
from libs.runtime.service import broker, log_as, read_settings, status_port, unique_id
from libs.runtime.tracing import open_tracing
from services.gpu_worker.checkpoint_options import NO_ROOM, HostRoom
from services.gpu_worker.commands import EXIT_DRAINED, EXIT_ENGINE_FAILED
from services.gpu_worker.config import WorkerConfig
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.engine_setup import start_engine, worker_options
from services.gpu_worker.engine_thread import EngineThread
from services.gpu_worker.host_copies import HostCopies
from services.gpu_worker.options import WorkerOptions
from services.gpu_worker.planned_setup import plan_worker, read_outline
from services.gpu_worker.position_memory import memory_rule
from services.gpu_worker.positions import SOLO_REPLICA_ID
from services.gpu_worker.session_spans import SessionSpans
from services.gpu_worker.shell import NodeNotices, PlannedParts, WorkerShell
from services.gpu_worker.worker_metrics import worker_metrics

_log = structlog.get_logger(__name__)


class WorkerProcess:
    """One process from its settings to its exit code."""

    def __init__(self) -> None:
        self.exit_code = 0

    async def serve(self, stopping: asyncio.Event) -> None:
        """Load, connect, announce, and serve until told to stop. Raises: ConfigError."""
        config = read_settings(WorkerConfig, service="gpu_worker")
        worker_id = unique_id(config.worker_id)
        log_as(config, service="gpu_worker", worker_id=worker_id)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        try:
            async with broker(config.nats_url, name=worker_id) as bus:
                process = ServingProcess(config, worker_id, bus, thread)
                serving = process.serve_planned if config.is_planned else process.serve_solo
                self.exit_code = await serving(stopping)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)


class ServingProcess:
    """A process that is connected, until it is done."""

    def __init__(
        self, config: WorkerConfig, worker_id: str, bus: NatsBus, thread: ThreadPoolExecutor
    ) -> None:
        self._config = config
        self._worker_id = worker_id
        self._bus = bus
        self._thread = thread
        self._clock = SystemClock()

    async def serve_solo(self, stopping: asyncio.Event) -> int:
        """Serve the whole model; return the exit code."""
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(self._thread, start_engine, self._config)
        if stopping.is_set():
            return EXIT_DRAINED
        options = self._options(
            vocabulary_size=engine.loaded.config.vocabulary_size,
            engine=engine.loaded.scheduler_options,
            can_hold_to_schema=engine.loaded.can_hold_to_schema,
            room=engine.host_room,
        )
        engine_thread = EngineThread(self._clock, self._thread)
        engine_thread.add(SOLO_REPLICA_ID, engine.loaded.runner)
        core = WorkerCore(options, engine.scheduler)
        copies = HostCopies(self._clock, threads=self._config.threads)
        if engine.host_memory is not None:
            copies.add(SOLO_REPLICA_ID, engine.host_memory)
        try:
            return await self._run(
                options,
                core,
                engine_thread,
                stopping,
                copies=copies,
                safepoints=engine.loaded.runner.safepoints.counters,
            )
        finally:
            copies.close()

    async def serve_planned(self, stopping: asyncio.Event) -> int:
        """Serve what a migrator says; return the exit code."""
        loop = asyncio.get_running_loop()
        model = await loop.run_in_executor(self._thread, read_outline, self._config)
        worker = plan_worker(
            self._config, model, worker_id=self._worker_id, clock=self._clock, thread=self._thread
        )
        peer_address = await worker.network.start()
        try:
            options = replace(
                self._options(
                    vocabulary_size=model.config.shape.vocabulary_size,
                    engine=worker.bounds,
                    can_hold_to_schema=model.grammars is not None,
                ),
                peer_address=peer_address,
                memory_bytes=worker.memory.memory_bytes,
                memory_rule=memory_rule(model),
            )
            core = WorkerCore(options, None)
            planned = PlannedParts(host=worker.hosted, desk=worker.desk)
            return await self._run(
                options,
                core,
                worker.engine,
                stopping,
                copies=worker.copies,
                safepoints=worker.hosted.safepoint_counters,
                planned=planned,
            )
        finally:
            await worker.close()

    def _options(
        self,
        *,
        vocabulary_size: int,
        engine: SchedulerOptions,
        can_hold_to_schema: bool,
        room: HostRoom = NO_ROOM,
    ) -> WorkerOptions:
        return worker_options(
            self._config,
            worker_id=self._worker_id,
            process_id=os.getpid(),
            vocabulary_size=vocabulary_size,
            engine=engine,
            can_hold_to_schema=can_hold_to_schema,
            room=room,
        )

    async def _run(
        self,
        options: WorkerOptions,
        core: WorkerCore,
        engine: EngineThread,
        stopping: asyncio.Event,
        *,
        copies: HostCopies,
        safepoints: SafepointCounters,
        planned: PlannedParts | None = None,
    ) -> int:
        config = self._config
        async with open_tracing(
            service="gpu-worker", instance=self._worker_id, endpoint=config.otlp_endpoint
        ) as tracing:
            shell = WorkerShell(
                worker_id=self._worker_id,
                core=core,
                engine=engine,
                bus=self._bus,
                clock=self._clock,
                step_timeout_ns=config.step_timeout_ms * NS_PER_MS,
                copies=copies,
                planned=planned,
                hears_peers=options.guard_bytes_per_s > 0,
                notices=_notices(config),
                spans=None if tracing is None else SessionSpans(tracing),
            )
            metrics = worker_metrics(
                core,
                messages_dropped=lambda: shell.messages_dropped,
                messages_refused=lambda: shell.actor.events_refused,
                safepoints=safepoints,
            )
            async with status_port(
                config,
                metrics,
                is_ready=lambda: self._bus.is_connected and not core.is_draining,
            ):
                _log.info(
                    "worker_ready",
                    alias=options.alias,
                    model=config.model,
                    placement=config.placement,
                    dtype=config.engine_dtype,
                    blocks_total=options.engine.blocks_total,
                    context_tokens_max=options.engine.context_tokens_max,
                )
                return await shell.run(stopping)


def _notices(config: WorkerConfig) -> NodeNotices | None:
    node_id = config.node_id_reported
    if node_id is None:
        return None
    from_node = None if config.node_socket is None else NoticeListener(Path(config.node_socket))
    return NodeNotices(node_id=node_id, from_node=from_node)


def main() -> int:
    """Run the process and return its exit code."""
    process = WorkerProcess()
    exit_code = run_service(process.serve, name="gpu_worker") or process.exit_code
    if exit_code == EXIT_ENGINE_FAILED:
        # The engine's thread may hang in a step, and the interpreter would wait for it.
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())

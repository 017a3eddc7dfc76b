"""`python -m services.gpu_worker`: one worker process.

Exit codes: 0 drained, 64 wrong configuration or model, 70 violated invariant, 71 failed engine.
"""

import asyncio
import os
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor

import structlog

from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError, Unavailable
from libs.runtime.clock import SystemClock
from libs.runtime.config import read_config
from libs.runtime.logs import set_up_logs
from libs.runtime.nats_bus import NatsBus
from libs.runtime.process import die_with_parent, run_service
from libs.runtime.status_server import StatusServer
from services.gpu_worker.commands import EXIT_ENGINE_FAILED
from services.gpu_worker.config import WorkerConfig
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.engine_setup import WarmEngine, start_engine, worker_options
from services.gpu_worker.engine_thread import EngineThread
from services.gpu_worker.positions import SOLO_REPLICA_ID
from services.gpu_worker.shell import WorkerShell
from services.gpu_worker.worker_metrics import worker_metrics

_log = structlog.get_logger(__name__)


class WorkerProcess:
    """One process from its settings to its exit code."""

    def __init__(self) -> None:
        self.exit_code = 0

    async def serve(self, stopping: asyncio.Event) -> None:
        """Load, connect, announce, and serve until told to stop. Raises: ConfigError."""
        config = _read_settings()
        # Unique per start: nothing sent to an earlier process may reach this one.
        worker_id = alias_of(f"{config.worker_id[:48]}-{secrets.token_hex(4)}")
        set_up_logs(
            service="gpu_worker",
            format_name=config.log_format,
            level=config.log_level,
            worker_id=worker_id,
        )
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        try:
            bus = await _connect(config, worker_id)
            try:
                loop = asyncio.get_running_loop()
                engine = await loop.run_in_executor(thread, start_engine, config)
                if not stopping.is_set():
                    await self._run(config, engine, worker_id, bus, thread, stopping)
            finally:
                await bus.close()
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    async def _run(
        self,
        config: WorkerConfig,
        engine: WarmEngine,
        worker_id: str,
        bus: NatsBus,
        thread: ThreadPoolExecutor,
        stopping: asyncio.Event,
    ) -> None:
        options = worker_options(config, engine, worker_id=worker_id, process_id=os.getpid())
        clock = SystemClock()
        core = WorkerCore(options, engine.scheduler)
        engine_thread = EngineThread(clock, thread)
        engine_thread.add(SOLO_REPLICA_ID, engine.loaded.runner)
        shell = WorkerShell(
            worker_id=worker_id,
            core=core,
            engine=engine_thread,
            bus=bus,
            clock=clock,
            step_timeout_ns=config.step_timeout_ns,
        )
        status = StatusServer(
            metrics=worker_metrics(core, shell),
            is_ready=lambda: bus.is_connected and not core.is_draining,
        )
        if config.metrics_port is not None:
            await status.start(host=config.metrics_host, port=config.metrics_port)
        _log.info(
            "worker_ready",
            alias=options.alias,
            model=config.model,
            dtype=str(engine.loaded.dtype),
            blocks_total=options.engine.blocks_total,
            context_tokens_max=options.engine.context_tokens_max,
        )
        try:
            self.exit_code = await shell.run(stopping)
        finally:
            await status.stop()


def _read_settings() -> WorkerConfig:
    set_up_logs(service="gpu_worker")
    config = read_config(WorkerConfig, service="gpu_worker")
    if config.dies_with_parent:
        die_with_parent()
    return config


async def _connect(config: WorkerConfig, worker_id: str) -> NatsBus:
    try:
        return await NatsBus.connect(config.nats_url, name=worker_id)
    except Unavailable as error:
        raise ConfigError(f"nats_url: {error}") from None


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

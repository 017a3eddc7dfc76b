"""Gives the worker's core a bus, a clock, an engine thread and a way to end."""

import asyncio
import contextlib
from typing import Final, assert_never

import structlog

from libs.contracts import subjects
from libs.contracts.sessions import SessionRefused
from libs.kernel.core import SetTimer
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import BusMessage, CoreBus
from libs.runtime.clock import Clock
from libs.runtime.shell import ActorShell, Effect
from services.gpu_worker.commands import (
    PublishReport,
    RunStep,
    SendTokens,
    SendToRouter,
    StopProcess,
    WorkerCommand,
)
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.engine_thread import EngineThread, step_failed
from services.gpu_worker.events import DrainRequested, WorkerEvent, WorkerStarted
from services.gpu_worker.outbox import Outbox
from services.gpu_worker.wire import event_of, outgoing

STEP_TIMEOUT_NS: Final = 120 * NS_PER_S
"""A step this long hangs: the slowest prefill on a CPU takes seconds. Without a bound a device that
answers no more would leave its sessions held, and silent, for ever."""

_log = structlog.get_logger(__name__)


class WorkerShell:
    """Runs one worker until it has drained or its engine has failed."""

    def __init__(
        self,
        *,
        worker_id: str,
        core: WorkerCore,
        engine: EngineThread,
        bus: CoreBus,
        clock: Clock,
        step_timeout_ns: int = STEP_TIMEOUT_NS,
    ) -> None:
        self._step_timeout_ns = step_timeout_ns
        self._worker_id = worker_id
        self._bus = bus
        self._engine = engine
        self._outbox = Outbox(bus)
        self._exit_code = 0
        self.actor: ActorShell[WorkerEvent, WorkerCommand] = ActorShell(
            core=core, interpret=self._interpret, clock=clock, name=worker_id
        )

    @property
    def messages_dropped(self) -> int:
        """Messages that could not be published; each is healed by a later one."""
        return self._outbox.messages_dropped

    async def run(self, stopping: asyncio.Event) -> int:
        """Announce the worker and serve until it is done; return the exit code.

        `stopping` makes it drain. Raises: InvariantViolation (in a group), for exit code 70.
        """
        subscription = await self._bus.subscribe(subjects.worker_control(self._worker_id))
        self.actor.post(WorkerStarted(cause_id=self._worker_id))
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(self.actor.feed(subscription, _translate))
            draining = group.create_task(self._drain_after(stopping))
            group.create_task(self._outbox.run())
            await self.actor.run()
            feeding.cancel()
            draining.cancel()
            self._outbox.close()
        with contextlib.suppress(Unavailable):
            await subscription.close()
            await self._bus.flush()
        return self._exit_code

    async def _drain_after(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self.actor.post(DrainRequested(cause_id="signal"))

    def _interpret(self, command: WorkerCommand) -> Effect[WorkerEvent] | None:
        match command:
            case RunStep():
                return Effect(
                    work=lambda: self._engine.run(command),
                    failed=lambda error: step_failed(command, error),
                    timeout_ns=self._step_timeout_ns,
                )
            case SendToRouter(message=SessionRefused() as refusal):
                _log.info(
                    "session_refused",
                    request_id=refusal.request_id,
                    session_epoch=refusal.session_epoch,
                    reason=refusal.reason.value,
                    message=refusal.message,
                )
                self._outbox.put(outgoing(command))
            case SendTokens() | SendToRouter() | PublishReport():
                self._outbox.put(outgoing(command))
            case StopProcess():
                _log.info("worker_stops", exit_code=command.exit_code, message=command.message)
                self._exit_code = command.exit_code
                self.actor.stop()
            case SetTimer():
                pass  # the actor shell's own
            case _:
                assert_never(command)
        return None


def _translate(message: BusMessage) -> WorkerEvent:
    return event_of(message.payload)

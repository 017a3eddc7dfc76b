"""Gives the worker's core a bus, a clock, an engine thread and a way to end."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

import structlog

from libs.contracts import subjects
from libs.contracts.handover import ShapeFailed, ToMigrator
from libs.contracts.preemption import Notice
from libs.contracts.sessions import SessionRefused
from libs.kernel.core import SetTimer, present
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import BusMessage, CoreBus, Subscription
from libs.runtime.clock import Clock
from libs.runtime.shell import ActorShell, Effect
from services.gpu_worker.commands import (
    AllocatePosition,
    AnswerMigrator,
    AnswerPeer,
    BreakGroup,
    CopyBlocks,
    FormGroup,
    FreePosition,
    HostCommand,
    LoadBlocks,
    LoadPosition,
    PositionCommand,
    PublishReport,
    RunStep,
    SendTokens,
    SendToRouter,
    StopProcess,
    StoreBlocks,
    WorkerCommand,
    YieldStep,
)
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.engine_thread import EngineThread, step_failed
from services.gpu_worker.events import DrainRequested, StepFinished, WorkerEvent, WorkerStarted
from services.gpu_worker.host_copies import HostCopies, host_copy_failed
from services.gpu_worker.outbox import Outbox
from services.gpu_worker.peer_desk import PeerDesk
from services.gpu_worker.position_work import (
    PositionHost,
    do_position_work,
    position_work_failed,
)
from services.gpu_worker.session_spans import SessionSpans
from services.gpu_worker.wire import (
    event_of,
    notice_event,
    notice_event_of,
    outgoing,
    peer_event_of,
    shape_event_of,
)

STEP_TIMEOUT_NS: Final = 120 * NS_PER_S
"""A step this long hangs: the slowest prefill on a CPU takes seconds. Without a bound a device that
answers no more would leave its sessions held, and silent, for ever."""
POSITION_WORK_TIMEOUT_NS: Final = 600 * NS_PER_S
"""Weights of hundreds of gigabytes from a slow disk take minutes; what waits for a peer has shorter
time-outs of its own."""

HOST_COPY_TIMEOUT_NS: Final = 60 * NS_PER_S
"""A copy takes milliseconds; what waits for a member has a shorter time-out of its own."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedParts:
    """What a worker has that computes whatever part of the model it is told to."""

    host: PositionHost
    desk: PeerDesk


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNotices:
    """How a worker hears that its node will end: over the bus, and from the node itself."""

    node_id: str
    from_node: AsyncIterable[Notice] | None = None
    """The node's own watcher, which needs no broker; None where there is none."""


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
        copies: HostCopies | None = None,
        planned: PlannedParts | None = None,
        hears_peers: bool = False,
        notices: NodeNotices | None = None,
        spans: SessionSpans | None = None,
    ) -> None:
        self._spans = spans
        self._step_timeout_ns = step_timeout_ns
        self._worker_id = worker_id
        self._bus = bus
        self._engine = engine
        self._copies = copies
        self._planned = planned
        self._hears_peers = hears_peers
        self._notices = notices
        self._outbox = Outbox(bus)
        self._exit_code = 0
        self.actor: ActorShell[WorkerEvent, WorkerCommand] = ActorShell(
            core=core, interpret=self._interpret, clock=clock, name=worker_id
        )
        if planned is not None:
            planned.desk.attach(self.actor.post)

    @property
    def messages_dropped(self) -> int:
        """Messages that could not be published; each is healed by a later one."""
        return self._outbox.messages_dropped

    async def run(self, stopping: asyncio.Event) -> int:
        """Announce the worker and serve until it is done; return the exit code.

        `stopping` makes it drain. Raises: InvariantViolation (in a group), for exit code 70.
        """
        subscriptions = await self._subscribe()
        self.actor.post(WorkerStarted(cause_id=self._worker_id))
        async with asyncio.TaskGroup() as group:
            readers = [
                group.create_task(self.actor.feed(subscription, translate))
                for subscription, translate in subscriptions
            ]
            if self._notices is not None and self._notices.from_node is not None:
                reading = self.actor.feed(self._notices.from_node, notice_event)
                readers.append(group.create_task(reading))
            readers.append(group.create_task(self._drain_after(stopping)))
            group.create_task(self._outbox.run())
            await self.actor.run()
            for reader in readers:
                reader.cancel()
            self._outbox.close()
        with contextlib.suppress(Unavailable):
            for subscription, _ in subscriptions:
                await subscription.close()
            await self._bus.flush()
        return self._exit_code

    async def _subscribe(self) -> list[tuple[Subscription, Callable[[BusMessage], WorkerEvent]]]:
        heard = {subjects.worker_control(self._worker_id): event_of}
        if self._planned is not None:
            heard[subjects.worker_shape(self._worker_id)] = shape_event_of
        if self._hears_peers:
            heard[subjects.WORKER_REPORTS] = peer_event_of
        if self._notices is not None:
            heard[subjects.notice(self._notices.node_id)] = notice_event_of
        return [
            (await self._bus.subscribe(subject), self._watched(partial(_translate, translate)))
            for subject, translate in heard.items()
        ]

    def _watched(
        self, translate: Callable[[BusMessage], WorkerEvent]
    ) -> Callable[[BusMessage], WorkerEvent]:
        return translate if self._spans is None else self._spans.hearing(translate)

    async def _drain_after(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self.actor.post(DrainRequested(cause_id="signal"))

    async def _run_step(self, command: RunStep) -> StepFinished:
        if self._planned is not None:
            await self._planned.host.tell_members(command)
        return await self._engine.run(command)

    def _position_effect(self, command: PositionCommand) -> Effect[WorkerEvent]:
        host = self._planned_parts().host
        return Effect(
            work=lambda: do_position_work(host, command),
            failed=lambda error: position_work_failed(command, error),
            timeout_ns=POSITION_WORK_TIMEOUT_NS,
        )

    def _host_effect(self, command: HostCommand) -> Effect[WorkerEvent]:
        copies = present(self._copies, "a worker without host memory is told of checkpoints")
        return Effect(
            work=lambda: copies.carry_out(command),
            failed=lambda error: host_copy_failed(command, error),
            timeout_ns=HOST_COPY_TIMEOUT_NS,
        )

    def _yield_effect(self, command: YieldStep) -> Effect[WorkerEvent] | None:
        """Let the other workers of the replica know, too; the step itself says what came of it."""
        if self._planned is None:
            return None
        host = self._planned.host
        return Effect(work=lambda: host.tell_members_to_yield(command))

    def _planned_parts(self) -> PlannedParts:
        return present(self._planned, "a solo worker is told of another position")

    def _interpret(self, command: WorkerCommand) -> Effect[WorkerEvent] | None:
        if self._spans is not None:
            self._spans.sending(command)
        match command:
            case RunStep():
                return Effect(
                    work=lambda: self._run_step(command),
                    failed=lambda error: step_failed(command, error),
                    timeout_ns=self._step_timeout_ns,
                )
            case StoreBlocks() | LoadBlocks():
                return self._host_effect(command)
            case YieldStep():
                self._engine.request_yield(command)
                return self._yield_effect(command)
            case AllocatePosition() | LoadPosition() | FormGroup() | CopyBlocks() | FreePosition():
                return self._position_effect(command)
            case BreakGroup():
                _log.warning(
                    "replica_broken", replica_id=command.replica_id, cause_id=command.cause_id
                )
                self._planned_parts().host.break_group(command)
            case AnswerPeer():
                self._planned_parts().desk.answer(command)
            case SendToRouter(message=SessionRefused() as refusal):
                _log.info(
                    "session_refused",
                    request_id=refusal.request_id,
                    session_epoch=refusal.session_epoch,
                    reason=refusal.reason.value,
                    message=refusal.message,
                    cause_id=command.cause_id,
                )
                self._outbox.put(outgoing(command))
            case AnswerMigrator(message=answer):
                _log_answer(answer, cause_id=command.cause_id)
                self._outbox.put(outgoing(command))
            case SendTokens() | SendToRouter() | PublishReport():
                self._outbox.put(outgoing(command))
            case StopProcess():
                _log.info(
                    "worker_stops",
                    exit_code=command.exit_code,
                    message=command.message,
                    cause_id=command.cause_id,
                )
                self._exit_code = command.exit_code
                self.actor.stop()
            case SetTimer():
                pass  # the actor shell's own
            case _:
                assert_never(command)
        return None


def _log_answer(answer: ToMigrator, *, cause_id: str) -> None:
    """One line for each time that a command is answered."""
    name = {"handover_id": answer.handover_id, "op_id": answer.op_id, "cause_id": cause_id}
    if isinstance(answer, ShapeFailed):
        _log.warning("command_failed", reason=answer.reason.value, message=answer.message, **name)
    else:
        _log.info("command_done", **name)


def _translate(translate: Callable[[bytes], WorkerEvent], message: BusMessage) -> WorkerEvent:
    return translate(message.payload)

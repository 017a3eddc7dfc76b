"""The migrator's shell: bus messages in, commands out, no decision.

Orders and reports may be lost while the broker is away: that is counted, not reported, because they
are repeated. What is stored goes through RecordPort.
"""

import asyncio
from typing import Final, assert_never

import structlog

from libs.kernel.core import SetTimer
from libs.kernel.units import NS_PER_S
from libs.runtime.best_effort import BestEffortPublisher, run_until
from libs.runtime.bus import Bus, BusMessage
from libs.runtime.clock import Clock
from libs.runtime.reachability import is_worker_reachable
from libs.runtime.shell import ActorShell, Effect
from services.migrator.commands import (
    Decision,
    MigratorCommand,
    PingWorker,
    PublishReport,
    ReadPlacement,
    ReadRecord,
    SendToWorker,
    StoreRecord,
)
from services.migrator.core import MigratorCore
from services.migrator.events import (
    MigratorEvent,
    MigratorStarted,
    PlacementUnavailable,
    RecordUnavailable,
    WorkerUnreachable,
)
from services.migrator.options import MigratorOptions
from services.migrator.ports import RecordPort, open_record_port
from services.migrator.wire import Sending, event_of, listening, outgoing

EFFECT_TIMEOUT_NS: Final = 8 * NS_PER_S
"""Past every time-out of the bus itself: the last resort against an effect that never ends."""

_log = structlog.get_logger(__name__)


class MigratorShell:
    """One migrator on a live bus."""

    def __init__(
        self, *, bus: Bus, records: RecordPort, options: MigratorOptions, clock: Clock
    ) -> None:
        self.core = MigratorCore(options)
        self._bus = bus
        self._publisher = BestEffortPublisher(bus)
        self._records = records
        self._options = options
        self._clock = clock
        self._actor: ActorShell[MigratorEvent, MigratorCommand] = ActorShell(
            core=self.core, interpret=self._interpret, clock=clock, name=options.migrator_id
        )

    @property
    def messages_unsent(self) -> int:
        """Orders and reports that the broker could not take; they are repeated."""
        return self._publisher.messages_unsent

    async def run(self, stopping: asyncio.Event) -> None:
        """Look after the fleet until told to stop; what is under way is left to a successor."""
        patterns = listening(self._options.migrator_id, self._options.alias)
        subscriptions = [await self._bus.subscribe(pattern) for pattern in patterns]
        started = MigratorStarted(
            now_unix_ns=self._clock.now_unix_ns(), cause_id=self._options.migrator_id
        )
        self._actor.post(started)
        await run_until(stopping, self._actor, heard=subscriptions, translate=self._translate)

    def _translate(self, message: BusMessage) -> MigratorEvent | None:
        return event_of(
            subject=message.subject,
            payload=message.payload,
            now_unix_ns=self._clock.now_unix_ns(),
        )

    def _interpret(self, command: MigratorCommand) -> Effect[MigratorEvent] | None:
        match command:
            case PingWorker():
                return Effect(work=lambda: self._ping(command))
            case SendToWorker() | PublishReport():
                return Effect(work=lambda: self._send(command))
            case StoreRecord():
                for decision in command.decisions:
                    _log.info(**_fields(decision), alias=self._options.alias)
                return Effect(
                    work=lambda: self._records.store_record(command),
                    failed=lambda _: _unavailable(command),
                    timeout_ns=EFFECT_TIMEOUT_NS,
                )
            case ReadRecord():
                return Effect(
                    work=lambda: self._records.read_record(command),
                    failed=lambda _: _unavailable(command),
                    timeout_ns=EFFECT_TIMEOUT_NS,
                )
            case ReadPlacement():
                return Effect(
                    work=lambda: self._records.read_placement(command),
                    failed=lambda _: PlacementUnavailable(
                        op_id=command.op_id, cause_id=command.cause_id
                    ),
                    timeout_ns=EFFECT_TIMEOUT_NS,
                )
            case SetTimer():
                return None  # the actor's own
            case _:
                assert_never(command)

    async def _ping(self, command: PingWorker) -> WorkerUnreachable | None:
        is_reachable = await is_worker_reachable(
            self._bus, command.worker_id, asker_id=self._options.migrator_id
        )
        if is_reachable:
            return None
        return WorkerUnreachable(worker_id=command.worker_id, cause_id=command.cause_id)

    async def _send(self, command: Sending) -> None:
        out = outgoing(command)
        await self._publisher.publish(out.subject, out.payload)


def _unavailable(command: StoreRecord | ReadRecord) -> RecordUnavailable:
    return RecordUnavailable(op_id=command.op_id, cause_id=command.cause_id)


def _fields(decision: Decision) -> dict[str, str | int | list[str]]:
    """Return a decision as a log line, without what it says nothing about."""
    fields: dict[str, str | int | list[str]] = {
        "handover_id": decision.handover_id,
        "state": decision.state or "",
        "policy": decision.policy or "",
        "plan_revision": decision.plan_revision,
        "sources": list(decision.source_replica_ids),
        "targets": list(decision.target_replica_ids),
        "reason": decision.reason,
        "cause_id": decision.cause_id,
    }
    said = {name: value for name, value in fields.items() if value}
    return {"event": decision.name, **said}


async def open_migrator(*, bus: Bus, options: MigratorOptions, clock: Clock) -> MigratorShell:
    """Create what the migrator stores, then the migrator. Raises: ConfigError."""
    records = await open_record_port(bus, alias=options.alias)
    return MigratorShell(bus=bus, records=records, options=options, clock=clock)

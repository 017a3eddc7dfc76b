"""Gives the watcher's core its sources, the bus, the node's socket and a clock."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final, assert_never

import structlog

from libs.contracts import subjects
from libs.contracts.preemption import NOTICE_REQUESTS, Notice, PreemptionNotice
from libs.contracts.wire import encode, encoding_of
from libs.kernel.core import SetTimer
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.bus import BusMessage
from libs.runtime.clock import Clock
from libs.runtime.notice_socket import NoticeServer
from libs.runtime.shell import ActorShell, Effect
from services.preemption_watcher.bus_link import BusLink
from services.preemption_watcher.commands import (
    AnswerRequest,
    ConfirmToSource,
    LogOutcome,
    Outcome,
    PollSource,
    PublishNotice,
    StopProcess,
    TellWorkers,
    WatcherCommand,
)
from services.preemption_watcher.core import WatcherCore
from services.preemption_watcher.events import (
    Asker,
    ConfirmationFailed,
    EvacuationConfirmed,
    RequestReceived,
    RequestUnreadable,
    SourceFailed,
    SourceObserved,
    StopRequested,
    WatcherEvent,
    WatcherStarted,
    WorkerConnected,
)
from services.preemption_watcher.readings import Observation
from services.preemption_watcher.sources.source import NoticeSource

CONFIRM_TIMEOUT_NS: Final = 15 * NS_PER_S
PUBLISH_TIMEOUT_NS: Final = 5 * NS_PER_S
WARNINGS: Final = frozenset(
    {
        Outcome.NOTICE_RAISED,
        Outcome.NOTICE_CHANGED,
        Outcome.NOTICE_REFUSED,
        Outcome.SOURCE_FAILED,
        Outcome.SOURCE_UNREADABLE,
    }
)

_log = structlog.get_logger(__name__)


class WatcherShell:
    """Runs one watcher until it is told to stop."""

    def __init__(
        self,
        *,
        node_id: str,
        core: WatcherCore,
        sources: Sequence[NoticeSource],
        link: BusLink,
        clock: Clock,
        socket_path: Path | None,
    ) -> None:
        self._node_id = node_id
        self.socket = (
            None
            if socket_path is None
            else NoticeServer(socket_path, on_connected=self._on_connected)
        )
        """The node's socket; None gives notice over the bus alone."""
        self._sources = {source.options.name: source for source in sources}
        self._link = link
        self._clock = clock
        self._polls: set[asyncio.Task[Observation]] = set()
        self.actor: ActorShell[WatcherEvent, WatcherCommand] = ActorShell(
            core=core, interpret=self._interpret, clock=clock, name=f"watcher-{node_id}"
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Watch until `stopping`, and longer where that is itself a notice.

        Raises: InvariantViolation, ConfigError (both perhaps in a group).
        """
        if self.socket is not None:
            await self.socket.start()
        self.actor.post(WatcherStarted(cause_id=self._node_id))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._take_requests()),
                    group.create_task(self._stop_after(stopping)),
                ]
                await self.actor.run()
                for task in tasks:
                    task.cancel()
        finally:
            if self.socket is not None:
                await self.socket.stop()
            for source in self._sources.values():
                await source.close()

    async def _take_requests(self) -> None:
        requests = await self._link.subscribe(subjects.notice_request(self._node_id))
        await self.actor.feed(requests, self._translate)

    async def _stop_after(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self.actor.post(StopRequested(cause_id="signal"))

    def _on_connected(self, connection_id: int) -> None:
        self.actor.offer(
            WorkerConnected(connection_id=connection_id, cause_id=f"worker-{connection_id}")
        )

    def _translate(self, message: BusMessage) -> WatcherEvent:
        asker = Asker(reply_to=message.reply_to, encoding=encoding_of(message.payload))
        try:
            request = NOTICE_REQUESTS.decode(message.payload)
        except ContractViolation as violation:
            return RequestUnreadable(asker=asker, reason=str(violation), cause_id="unreadable")
        return RequestReceived(
            request=request,
            asker=asker,
            now_unix_ns=self._clock.now_unix_ns(),
            cause_id=request.notice_id,
        )

    def _interpret(self, command: WatcherCommand) -> Effect[WatcherEvent] | None:
        match command:
            case PollSource():
                return Effect(
                    work=lambda: self._poll(command),
                    failed=lambda error: _poll_failed(command, f"{type(error).__name__}: {error}"),
                )
            case PublishNotice():
                subject = subjects.notice(command.notice.node_id)
                return self._publishing(subject, encode(command.notice))
            case AnswerRequest():
                answer = encode(command.answer, encoding=command.encoding)
                return self._publishing(command.reply_to, answer)
            case TellWorkers():
                if self.socket is not None:
                    self.socket.send(command.notices, connection=command.connection_id)
            case ConfirmToSource():
                return Effect(
                    work=lambda: self._confirm(command),
                    failed=lambda error: ConfirmationFailed(
                        op_id=command.op_id, reason=str(error), cause_id=command.cause_id
                    ),
                    timeout_ns=CONFIRM_TIMEOUT_NS,
                )
            case LogOutcome():
                _write(command)
            case StopProcess():
                self.actor.stop()
                for poll in self._polls:
                    poll.cancel()
            case SetTimer():
                pass  # the actor shell's own
            case _:
                assert_never(command)
        return None

    def _publishing(self, subject: str, payload: bytes) -> Effect[WatcherEvent]:
        return Effect(
            work=lambda: self._link.publish(subject, payload), timeout_ns=PUBLISH_TIMEOUT_NS
        )

    async def _poll(self, command: PollSource) -> WatcherEvent:
        """Ask once. A source may take minutes for it; the end of the watcher cuts that short."""
        polling = asyncio.create_task(self._sources[command.source].poll())
        self._polls.add(polling)
        try:
            await asyncio.wait([polling])
            if polling.cancelled():
                return _poll_failed(command, "the watcher stops")
            observation = polling.result()
        except Unavailable as error:
            return _poll_failed(command, str(error))
        except ContractViolation as violation:
            observation = Observation(unreadable=(str(violation),), is_whole=False)
        finally:
            polling.cancel()
            self._polls.discard(polling)
        return SourceObserved(
            op_id=command.op_id,
            source=command.source,
            observation=observation,
            now_unix_ns=self._clock.now_unix_ns(),
            cause_id=command.op_id,
        )

    async def _confirm(self, command: ConfirmToSource) -> WatcherEvent:
        await self._sources[command.source].confirm(command.notice_id)
        return EvacuationConfirmed(op_id=command.op_id, cause_id=command.cause_id)


def _poll_failed(command: PollSource, reason: str) -> SourceFailed:
    return SourceFailed(
        op_id=command.op_id, source=command.source, reason=reason, cause_id=command.op_id
    )


def _write(command: LogOutcome) -> None:
    write = _log.warning if command.outcome in WARNINGS else _log.info
    about = {} if command.notice is None else _about(command.notice)
    write(
        command.outcome.value,
        source=command.source,
        detail=command.detail,
        cause_id=command.cause_id,
        **about,
    )


def _about(notice: Notice) -> dict[str, object]:
    about: dict[str, object] = {
        "notice_id": notice.notice_id,
        "node_id": notice.node_id,
        "kind": notice.kind.value,
    }
    if isinstance(notice, PreemptionNotice) and notice.grace_ns is not None:
        about["grace_s"] = round(seconds(notice.grace_ns), 3)
    return about

"""The router's shell: bus messages in, commands out, no decision.

Core messages (replies, dispatches, reports) may be lost while the broker is away: that is counted,
not reported, because the protocol repeats them. What is stored goes through JournalPort.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, assert_never

import structlog

from libs.contracts.journal import (
    JournalRecord,
    JournalTakenOver,
    SessionDispatched,
    SessionFailed,
    SessionOpened,
)
from libs.contracts.online import RejectReason
from libs.kernel.core import SetTimer
from libs.kernel.units import NS_PER_S
from libs.runtime.best_effort import BestEffortPublisher, close_all
from libs.runtime.bus import NO_HEADERS, Bus, BusMessage
from libs.runtime.clock import Clock
from libs.runtime.shell import ActorShell, Effect
from libs.runtime.tracing import Tracing
from services.online_router.commands import (
    AppendJournal,
    ClaimRequest,
    ForwardSubmission,
    ListJournals,
    PingRouter,
    PublishReport,
    PurgeJournal,
    ReadJournal,
    ReadJournalTail,
    Reply,
    RouterCommand,
    SendToWorker,
    Tokenize,
)
from services.online_router.core import RouterCore
from services.online_router.events import (
    ClaimUnavailable,
    JournalAppendFailed,
    JournalUnavailable,
    PromptRefused,
    RouterEvent,
    RouterStarted,
)
from services.online_router.options import RouterOptions
from services.online_router.ports import JournalPort, open_journal_port
from services.online_router.request_spans import RequestSpans
from services.online_router.schema_desk import SchemaDesk
from services.online_router.text_desk import TextDesk
from services.online_router.tokenization import Tokenization
from services.online_router.wire import Sending, event_of, listening, outgoing

EFFECT_TIMEOUT_NS: Final = 8 * NS_PER_S
"""Past every time-out of the bus itself: the last resort against an effect that never ends."""
TOKENIZE_TIMEOUT_NS: Final = 30 * NS_PER_S

_log = structlog.get_logger(__name__)


class RouterShell:
    """One router on a live bus."""

    def __init__(
        self,
        *,
        bus: Bus,
        journal: JournalPort,
        tokenization: Tokenization,
        options: RouterOptions,
        clock: Clock,
        tracing: Tracing | None = None,
    ) -> None:
        self.core = RouterCore(options)
        self._spans = None if tracing is None else RequestSpans(tracing)
        self._bus = bus
        self._publisher = BestEffortPublisher(bus)
        self._journal = journal
        self._tokenization = tokenization
        self._router_id = options.router_id
        self._clock = clock
        self._tokenizer_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
        self._schema_desk = SchemaDesk(tokenization.serialised)
        self._text_desk = TextDesk(
            bus=bus, tokenization=tokenization, thread=self._tokenizer_thread
        )
        self._actor: ActorShell[RouterEvent, RouterCommand] = ActorShell(
            core=self.core, interpret=self._interpret, clock=clock, name=options.router_id
        )

    @property
    def messages_unsent(self) -> int:
        """Core messages that the broker could not take; the protocol repeats them."""
        return self._publisher.messages_unsent

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until told to stop. Sessions left open are taken over by another router."""
        subscriptions = [
            await self._bus.subscribe(listen.pattern, queue_group=listen.queue_group)
            for listen in listening(self._router_id)
        ]
        questions = await self._text_desk.subscribe()
        self._actor.post(RouterStarted(cause_id=self._router_id))
        try:
            async with asyncio.TaskGroup() as tasks:
                for subscription in subscriptions:
                    tasks.create_task(self._actor.feed(subscription, self._translate))
                tasks.create_task(self._text_desk.run(questions))
                tasks.create_task(self._actor.run())
                await stopping.wait()
                await close_all([*subscriptions, questions])
                self._actor.stop()
        finally:
            self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)
            await self._schema_desk.close()

    def _translate(self, message: BusMessage) -> RouterEvent | None:
        event = event_of(
            subject=message.subject,
            payload=message.payload,
            reply_to=message.reply_to,
            now_unix_ns=self._clock.now_unix_ns(),
        )
        if self._spans is not None:
            self._spans.heard(event, message.headers)
        return event

    def _interpret(self, command: RouterCommand) -> Effect[RouterEvent] | None:
        match command:
            case Reply() | SendToWorker() | PingRouter() | ForwardSubmission() | PublishReport():
                return Effect(work=lambda: self._send(command))
            case Tokenize():
                return Effect(
                    work=lambda: self._tokenize(command),
                    failed=lambda error: PromptRefused(
                        op_id=command.op_id,
                        reason=RejectReason.INVALID,
                        message=f"the prompt cannot be tokenised ({type(error).__name__})",
                        cause_id=command.cause_id,
                    ),
                    timeout_ns=TOKENIZE_TIMEOUT_NS,
                )
            case ClaimRequest():
                unavailable = ClaimUnavailable(op_id=command.op_id, cause_id=command.cause_id)
                return _stored(lambda: self._journal.claim(command), unavailable)
            case AppendJournal():
                self._log_decisions(command)
                failed = JournalAppendFailed(op_id=command.op_id, cause_id=command.cause_id)
                return _stored(lambda: self._journal.append(command), failed)
            case ReadJournalTail():
                unread = JournalUnavailable(op_id=command.op_id, cause_id=command.cause_id)
                return _stored(lambda: self._journal.read_tail(command), unread)
            case ReadJournal():
                unread = JournalUnavailable(op_id=command.op_id, cause_id=command.cause_id)
                return _stored(lambda: self._journal.read(command), unread)
            case ListJournals():
                unread = JournalUnavailable(op_id=command.op_id, cause_id=command.cause_id)
                return _stored(lambda: self._journal.list_journals(command), unread)
            case PurgeJournal():
                return Effect(work=lambda: self._purge(command), timeout_ns=EFFECT_TIMEOUT_NS)
            case SetTimer():
                return None  # the actor's own
            case _:
                assert_never(command)

    async def _send(self, command: Sending) -> None:
        out = outgoing(command, router_id=self._router_id)
        headers = NO_HEADERS if self._spans is None else self._spans.sending(command)
        await self._publisher.publish(
            out.subject, out.payload, reply_to=out.reply_to, headers=headers
        )

    async def _tokenize(self, command: Tokenize) -> RouterEvent:
        schema = command.submission.answer_schema
        if schema is not None:
            refusal = await self._schema_desk.refusal(command.alias, schema)
            if refusal is not None:
                return PromptRefused(
                    op_id=command.op_id,
                    reason=refusal[0],
                    message=refusal[1],
                    parameter="response_format",
                    cause_id=command.cause_id,
                )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizer_thread, self._tokenization.run, command)

    async def _purge(self, command: PurgeJournal) -> None:
        await self._journal.purge(command)

    def _log_decisions(self, command: AppendJournal) -> None:
        """One line per decision that the journal makes true; tokens are no decisions."""
        for record in command.records:
            fields = _decision(record)
            if fields is not None:
                _log.info(**fields, journal_id=command.journal_id, cause_id=command.cause_id)


def _stored(work: Callable[[], Awaitable[RouterEvent]], failed: RouterEvent) -> Effect[RouterEvent]:
    return Effect(work=work, failed=lambda _: failed, timeout_ns=EFFECT_TIMEOUT_NS)


def _decision(record: JournalRecord) -> dict[str, str | int] | None:
    match record:
        case SessionOpened():
            return {
                "event": "session_opened",
                "request_id": record.spec.request_id,
                "worker_id": record.worker_id,
                "session_epoch": record.session_epoch,
                "tokens_before": len(record.generated_token_ids),
            }
        case SessionDispatched():
            return {
                "event": "session_dispatched",
                "request_id": record.request_id,
                "worker_id": record.worker_id,
                "session_epoch": record.session_epoch,
            }
        case SessionFailed():
            return {
                "event": "session_failed",
                "request_id": record.request_id,
                "reason": str(record.reason),
            }
        case JournalTakenOver():
            return {"event": "journal_taken_over", "by_router_id": record.by_router_id}
        case _:
            return None


async def open_router(
    *,
    bus: Bus,
    tokenization: Tokenization,
    options: RouterOptions,
    clock: Clock,
    tracing: Tracing | None = None,
) -> RouterShell:
    """Create what the router stores, then the router. Raises: ConfigError."""
    journal = await open_journal_port(bus, clock)
    return RouterShell(
        bus=bus,
        journal=journal,
        tokenization=tokenization,
        options=options,
        clock=clock,
        tracing=tracing,
    )

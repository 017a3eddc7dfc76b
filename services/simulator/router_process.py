"""A router in the simulated world: the live core, its commands carried out on the virtual bus."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar, assert_never

from libs.contracts import subjects
from libs.contracts.journal import pack_batch
from libs.contracts.online import RejectReason
from libs.kernel.core import SetTimer, TimerFired
from libs.runtime.bus import (
    BusMessage,
    StreamFull,
    WrongLastSequence,
    WrongRevision,
)
from libs.runtime.memory_broker import MemoryBroker
from libs.runtime.memory_keys import MemoryKeys
from libs.sim.broker import SimBroker
from libs.sim.process import SimProcess
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
    ClaimMade,
    ClaimUnavailable,
    JournalAppended,
    JournalAppendFailed,
    JournalUnavailable,
    PromptRefused,
    PromptTokenized,
    RouterEvent,
    RouterStarted,
)
from services.online_router.options import RouterOptions
from services.online_router.ports import claim_event, list_event, read_event, tail_event
from services.online_router.wire import event_of, listening, outgoing

ResultT = TypeVar("ResultT")
TOKENIZE_NS = 300_000
"""What the live router takes to tokenise a short prompt."""


class RouterProcess(SimProcess):
    """Runs one RouterCore; invariants are checked after every event."""

    def __init__(self, network: SimBroker, options: RouterOptions) -> None:
        super().__init__(network.world, name=options.router_id)
        self.core = RouterCore(options)
        self._network = network
        self._router_id = options.router_id
        for listen in listening(options.router_id):
            network.subscribe(
                self, listen.pattern, self._on_message, queue_group=listen.queue_group
            )
        self.post(RouterStarted(cause_id=options.router_id))

    def post(self, event: RouterEvent) -> None:
        """Let the core handle the event and carry out what it commands."""
        commands: Sequence[RouterCommand] = self.core.handle(event, now_ns=self.world.now_ns)
        self.core.check_invariants()
        for command in commands:
            self._perform(command)

    def _on_message(self, message: BusMessage) -> None:
        event = event_of(
            subject=message.subject,
            payload=message.payload,
            reply_to=message.reply_to,
            now_unix_ns=self.world.now_ns,
        )
        if event is not None:
            self.post(event)

    def _perform(self, command: RouterCommand) -> None:
        match command:
            case Reply() | SendToWorker() | PingRouter() | ForwardSubmission() | PublishReport():
                out = outgoing(command, router_id=self._router_id)
                self._network.publish(
                    self,
                    BusMessage(subject=out.subject, payload=out.payload, reply_to=out.reply_to),
                )
            case SetTimer():
                fired = TimerFired(key=command.key, cause_id=command.cause_id)
                self.set_timer(
                    command.key, after_ns=command.after_ns, action=lambda: self.post(fired)
                )
            case Tokenize():
                self._tokenize(command)
            case ClaimRequest():
                self._claim(command)
            case AppendJournal():
                self._append(command)
            case ReadJournalTail() | ReadJournal() | ListJournals():
                self._read(command)
            case PurgeJournal():
                self._purge(command)
            case _:
                assert_never(command)

    def _tokenize(self, command: Tokenize) -> None:
        ids = command.submission.prompt_token_ids
        outcome: RouterEvent
        if ids is None:
            outcome = PromptRefused(
                op_id=command.op_id,
                reason=RejectReason.INVALID,
                message="the simulator takes token ids",
                cause_id=command.cause_id,
            )
        else:
            outcome = PromptTokenized(
                op_id=command.op_id, prompt_token_ids=ids, cause_id=command.cause_id
            )
        self.world.after(TOKENIZE_NS, lambda: self.deliver(lambda: self.post(outcome)))

    def _claim(self, command: ClaimRequest) -> None:
        def operation(broker: MemoryBroker, now_ns: int) -> RouterEvent:
            return _claim_at(broker, command, now_ns=now_ns)

        self._call(operation, ClaimUnavailable(op_id=command.op_id, cause_id=command.cause_id))

    def _append(self, command: AppendJournal) -> None:
        failed = JournalAppendFailed(op_id=command.op_id, cause_id=command.cause_id)

        def operation(broker: MemoryBroker, now_ns: int) -> RouterEvent:
            try:
                appended = broker.append(
                    subjects.journal(command.journal_id),
                    pack_batch(command.records),
                    message_id=command.message_id,
                    expected_last_subject_sequence=command.expected_sequence,
                    now_ns=now_ns,
                )
            except StreamFull:
                return replace(failed, is_full=True)
            except WrongLastSequence:
                return failed
            return JournalAppended(
                op_id=command.op_id, sequence=appended.sequence, cause_id=command.cause_id
            )

        self._call(operation, failed)

    def _read(self, command: ReadJournalTail | ReadJournal | ListJournals) -> None:
        def operation(broker: MemoryBroker, now_ns: int) -> RouterEvent:
            return _read_at(broker, command, now_ns=now_ns)

        self._call(operation, JournalUnavailable(op_id=command.op_id, cause_id=command.cause_id))

    def _purge(self, command: PurgeJournal) -> None:
        def operation(broker: MemoryBroker, now_ns: int) -> None:
            broker.purge(
                subjects.JOURNAL_STREAM,
                subjects.journal(command.journal_id),
                before_sequence=command.before_sequence,
                now_ns=now_ns,
            )

        self._network.call(self, operation, on_result=lambda _: None, on_timeout=lambda: None)

    def _call(
        self, operation: Callable[[MemoryBroker, int], RouterEvent], unavailable: RouterEvent
    ) -> None:
        self._network.call(
            self, operation, on_result=self.post, on_timeout=lambda: self.post(unavailable)
        )


def _claim_at(broker: MemoryBroker, command: ClaimRequest, *, now_ns: int) -> RouterEvent:
    keys = MemoryKeys(broker, bucket=subjects.CLAIM_BUCKET)
    value = command.journal_id.encode()
    try:
        if command.is_forced:
            keys.put(command.request_id, value, now_ns=now_ns)
        elif command.revision is not None:
            keys.update(command.request_id, value, revision=command.revision, now_ns=now_ns)
        else:
            keys.create(command.request_id, value, now_ns=now_ns)
    except WrongRevision:
        entry = keys.get(command.request_id, now_ns=now_ns)
        return claim_event(command, entry, value=value)
    return ClaimMade(op_id=command.op_id, cause_id=command.cause_id)


def _read_at(
    broker: MemoryBroker, command: ReadJournalTail | ReadJournal | ListJournals, *, now_ns: int
) -> RouterEvent:
    stream = subjects.JOURNAL_STREAM
    match command:
        case ListJournals():
            counts = broker.subjects(stream, subjects.JOURNAL_ALL, now_ns=now_ns)
            return list_event(command, counts)
        case ReadJournal():
            subject = subjects.journal(command.journal_id)
            messages = broker.read_subject(stream, subject, now_ns=now_ns)
            return read_event(command, messages, now_unix_ns=now_ns)
        case ReadJournalTail():
            subject = subjects.journal(command.journal_id)
            return tail_event(command, broker.last_message(stream, subject, now_ns=now_ns))

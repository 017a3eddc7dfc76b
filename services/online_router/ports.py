"""The router's durable side over the live bus: journal, claims and their outcomes as events.

Every function ends in exactly one outcome event of its command, also when the broker is away.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

from libs.contracts import subjects
from libs.contracts.journal import pack_batch, unpack_batch
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import MIB, NS_PER_S
from libs.runtime.bus import (
    Bus,
    Entry,
    KeyValue,
    PayloadTooLarge,
    StoredMessage,
    StreamFull,
    StreamMissing,
    StreamOptions,
    WrongLastSequence,
    WrongRevision,
)
from libs.runtime.clock import Clock
from services.online_router.commands import (
    AppendJournal,
    ClaimRequest,
    ListJournals,
    PurgeJournal,
    ReadJournal,
    ReadJournalTail,
)
from services.online_router.events import (
    ClaimHeld,
    ClaimMade,
    ClaimUnavailable,
    JournalAppended,
    JournalAppendFailed,
    JournalRead,
    JournalsListed,
    JournalTailRead,
    JournalUnavailable,
)

CALL_TIMEOUT_NS: Final = 2 * NS_PER_S
MESSAGE_ID_HEADER: Final = "Nats-Msg-Id"

JOURNAL_OPTIONS: Final = StreamOptions(
    name=subjects.JOURNAL_STREAM,
    subjects=(subjects.JOURNAL_ALL,),
    messages_max=4_000_000,
    bytes_max=1024 * MIB,
    age_max_ns=24 * 3600 * NS_PER_S,
    discard="new",
)
"""Routers shorten their own journals all the time; the bounds are for what they could not."""

CLAIM_AGE_MAX_NS: Final = 2 * 3600 * NS_PER_S
"""How long a request id stays taken. A repeat after that would be a new request."""
CLAIM_BYTES_MAX: Final = 512 * MIB


class JournalPort:
    """Carries out the commands that concern what is stored."""

    def __init__(self, bus: Bus, claims: KeyValue, clock: Clock) -> None:
        self._bus = bus
        self._claims = claims
        self._clock = clock

    async def append(self, command: AppendJournal) -> JournalAppended | JournalAppendFailed:
        """Append one batch; any failure is one outcome, because reading the tail decides."""
        try:
            appended = await self._bus.append(
                subjects.journal(command.journal_id),
                pack_batch(command.records),
                message_id=command.message_id,
                expected_last_subject_sequence=command.expected_sequence,
                timeout_ns=CALL_TIMEOUT_NS,
            )
        except StreamFull:
            return JournalAppendFailed(op_id=command.op_id, is_full=True, cause_id=command.cause_id)
        except (WrongLastSequence, PayloadTooLarge, Unavailable):
            return JournalAppendFailed(op_id=command.op_id, cause_id=command.cause_id)
        return JournalAppended(
            op_id=command.op_id, sequence=appended.sequence, cause_id=command.cause_id
        )

    async def read_tail(self, command: ReadJournalTail) -> JournalTailRead | JournalUnavailable:
        """Read the journal's last message."""
        subject = subjects.journal(command.journal_id)
        try:
            message = await self._bus.last_message(subjects.JOURNAL_STREAM, subject)
            return tail_event(command, message)
        except (Unavailable, StreamMissing, ContractViolation):
            return JournalUnavailable(op_id=command.op_id, cause_id=command.cause_id)

    async def read(self, command: ReadJournal) -> JournalRead | JournalUnavailable:
        """Read a whole journal."""
        subject = subjects.journal(command.journal_id)
        try:
            messages = await self._bus.read_subject(subjects.JOURNAL_STREAM, subject)
            return read_event(command, messages, now_unix_ns=self._clock.now_unix_ns())
        except (Unavailable, StreamMissing, ContractViolation):
            return JournalUnavailable(op_id=command.op_id, cause_id=command.cause_id)

    async def list_journals(self, command: ListJournals) -> JournalsListed | JournalUnavailable:
        """List the journals that hold messages."""
        try:
            counts = await self._bus.subjects(subjects.JOURNAL_STREAM, subjects.JOURNAL_ALL)
        except (Unavailable, StreamMissing):
            return JournalUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        return list_event(command, counts)

    async def purge(self, command: PurgeJournal) -> None:
        """Shorten a journal; a failure only costs space until the next time."""
        with contextlib.suppress(Unavailable, StreamMissing):
            await self._bus.purge(
                subjects.JOURNAL_STREAM,
                subjects.journal(command.journal_id),
                before_sequence=command.before_sequence,
            )

    async def claim(self, command: ClaimRequest) -> ClaimMade | ClaimHeld | ClaimUnavailable:
        """Bind a request id to a journal by compare-and-set."""
        value = command.journal_id.encode()
        try:
            try:
                await self._write_claim(command, value)
            except WrongRevision:
                return await self._claim_holder(command, value)
        except (Unavailable, StreamFull, StreamMissing):
            return ClaimUnavailable(op_id=command.op_id, cause_id=command.cause_id)
        return ClaimMade(op_id=command.op_id, cause_id=command.cause_id)

    async def _write_claim(self, command: ClaimRequest, value: bytes) -> None:
        if command.is_forced:
            await self._claims.put(command.request_id, value)
        elif command.revision is not None:
            await self._claims.update(command.request_id, value, revision=command.revision)
        else:
            await self._claims.create(command.request_id, value)

    async def _claim_holder(
        self, command: ClaimRequest, value: bytes
    ) -> ClaimMade | ClaimHeld | ClaimUnavailable:
        """Say who stands in the way; it may be ourselves, by an attempt whose answer was lost."""
        return claim_event(command, await self._claims.get(command.request_id), value=value)


def tail_event(command: ReadJournalTail, message: StoredMessage | None) -> JournalTailRead:
    """Return what the journal's last message says. Raises: ContractViolation."""
    return JournalTailRead(
        op_id=command.op_id,
        sequence=message.sequence if message is not None else 0,
        message_id=message.headers.get(MESSAGE_ID_HEADER) if message is not None else None,
        records=unpack_batch(message.payload) if message is not None else (),
        cause_id=command.cause_id,
    )


def read_event(
    command: ReadJournal, messages: Sequence[StoredMessage], *, now_unix_ns: int
) -> JournalRead:
    """Return all records of a journal. Raises: ContractViolation."""
    return JournalRead(
        op_id=command.op_id,
        records=tuple(record for m in messages for record in unpack_batch(m.payload)),
        sequence=messages[-1].sequence if messages else 0,
        read_at_unix_ns=now_unix_ns,
        cause_id=command.cause_id,
    )


def list_event(command: ListJournals, messages_by_subject: Mapping[str, int]) -> JournalsListed:
    """Return the journals behind the subjects."""
    return JournalsListed(
        op_id=command.op_id,
        messages_by_journal_id={
            subjects.last_token(subject): count for subject, count in messages_by_subject.items()
        },
        cause_id=command.cause_id,
    )


def claim_event(
    command: ClaimRequest, entry: Entry | None, *, value: bytes
) -> ClaimMade | ClaimHeld | ClaimUnavailable:
    """Return what an existing claim means to the one who asked."""
    if entry is None:  # it died of age in between
        return ClaimUnavailable(op_id=command.op_id, cause_id=command.cause_id)
    if entry.value == value:
        return ClaimMade(op_id=command.op_id, cause_id=command.cause_id)
    return ClaimHeld(
        op_id=command.op_id,
        journal_id=entry.value.decode(errors="replace"),
        revision=entry.revision,
        cause_id=command.cause_id,
    )


async def open_journal_port(bus: Bus, clock: Clock) -> JournalPort:
    """Create the stream and the bucket if need be. Raises: ConfigError."""
    await bus.ensure_stream(JOURNAL_OPTIONS)
    claims = await bus.ensure_bucket(
        subjects.CLAIM_BUCKET, age_max_ns=CLAIM_AGE_MAX_NS, bytes_max=CLAIM_BYTES_MAX
    )
    return JournalPort(bus, claims, clock)

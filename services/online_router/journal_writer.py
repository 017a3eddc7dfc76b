"""Group commit to our own journal, and the proof that we still own it.

    idle --records--> APPENDING --stored--> idle
                          | failed
                          v
                      VERIFYING --tail is ours--> idle (it was stored after all)
                          |  \\--tail as expected--> APPENDING again, after a pause
                          v
                      FENCED: somebody else wrote; every session here belongs to them

A full stream stores nothing for certain: what nobody was promised yet is withdrawn, and the rest of
the batch is appended again after a pause.

One batch is in flight at a time, so a batch is all that happened during the one before. The batch
is appended with the sequence of the last one: after a take-over that can never succeed. An append
whose answer was lost is resolved by reading the journal's last message, whose id tells whose it
is; no time-out is trusted.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from libs.contracts.journal import JournalRecord, SessionOpened, record_bytes_estimate
from libs.kernel.core import require
from services.online_router.commands import AppendJournal, ReadJournalTail


class WriterState(StrEnum):
    """Where the batch in flight stands."""

    IDLE = "idle"
    APPENDING = "appending"
    VERIFYING = "verifying"
    PAUSING = "pausing"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """These records are durable, in this order, in the message at this sequence."""

    records: tuple[JournalRecord, ...]
    sequence: int


class JournalWriter:
    """Owns the tail of one journal. `next_command` must be asked after every change."""

    def __init__(self, *, journal_id: str, batch_bytes_max: int) -> None:
        self.journal_id = journal_id
        self.sequence = 0
        self.state = WriterState.IDLE
        self._batch_bytes_max = batch_bytes_max
        self._pending: deque[JournalRecord] = deque()
        self._batch: tuple[JournalRecord, ...] = ()
        self._batches = 0
        self._attempts = 0
        self._op_id = ""
        self._opened_sequences: dict[str, int] = {}
        self._bytes_by_sequence: deque[tuple[int, int]] = deque()
        self._bytes_kept = 0
        self._purged_before = 0

    @property
    def is_healthy(self) -> bool:
        """Whether the journal answers; while it does not, nothing new should be admitted."""
        return self.state in (WriterState.IDLE, WriterState.APPENDING)

    @property
    def bytes_kept(self) -> int:
        """Estimated bytes that the journal holds because of sessions still retained."""
        return self._bytes_kept

    def add(self, record: JournalRecord) -> None:
        """Queue a record; it is written with the next batch."""
        if self.state is not WriterState.FENCED:
            self._pending.append(record)

    def next_command(self, *, cause_id: str) -> AppendJournal | None:
        """Start the next batch if none is in flight."""
        if self.state is not WriterState.IDLE or not self._pending:
            return None
        self._batch = self._take_batch()
        self._batches += 1
        return self._append(cause_id=cause_id)

    def appended(self, *, op_id: str, sequence: int) -> Committed | None:
        """Note that the batch is stored; None if this is not the batch in flight."""
        if op_id != self._op_id or self.state is not WriterState.APPENDING:
            return None
        return self._commit(sequence)

    def append_failed(self, *, op_id: str, cause_id: str) -> ReadJournalTail | None:
        """The outcome is not known: read the tail."""
        if op_id != self._op_id or self.state is not WriterState.APPENDING:
            return None
        self.state = WriterState.VERIFYING
        return self._read_tail(cause_id)

    def found_full(self, *, op_id: str) -> bool:
        """Nothing of the batch was stored; say whether it was the one in flight."""
        if op_id != self._op_id or self.state is not WriterState.APPENDING:
            return False
        self.state = WriterState.PAUSING
        return True

    def withdraw_openings(self, request_ids: Collection[str]) -> None:
        """Do not write that these sessions are opened; the stream has just been found full."""
        require(self.state is WriterState.PAUSING, "an opening may be stored already")

        def is_kept(record: JournalRecord) -> bool:
            return not (isinstance(record, SessionOpened) and record.spec.request_id in request_ids)

        self._batch = tuple(record for record in self._batch if is_kept(record))
        self._pending = deque(record for record in self._pending if is_kept(record))
        if not self._batch:
            self.state = WriterState.IDLE

    def tail_read(self, *, op_id: str, sequence: int, message_id: str | None) -> Committed | None:
        """Decide what the failed append came to: committed, to be repeated, or fenced."""
        if op_id != self._op_id or self.state is not WriterState.VERIFYING:
            return None
        if message_id == self._message_id():
            return self._commit(sequence)
        self.state = WriterState.PAUSING if sequence == self.sequence else WriterState.FENCED
        return None

    def tail_unavailable(self, *, op_id: str) -> None:
        """The tail could not be read either; read it again after the pause."""
        if op_id == self._op_id and self.state is WriterState.VERIFYING:
            self._op_id = ""

    def retry(self, *, cause_id: str) -> AppendJournal | ReadJournalTail | None:
        """After the pause: append the same batch again, or read the tail again."""
        if self.state is WriterState.PAUSING:
            return self._append(cause_id=cause_id)
        if self.state is WriterState.VERIFYING and not self._op_id:
            return self._read_tail(cause_id)
        return None

    def retain(self, request_id: str, *, sequence: int) -> None:
        """Keep the journal from this sequence on, where the session was opened."""
        self._opened_sequences[request_id] = sequence

    def release(self, request_id: str) -> None:
        """The session no longer needs its records."""
        self._opened_sequences.pop(request_id, None)

    def oldest_retained(self) -> str | None:
        """Return the session that keeps the journal longest."""
        if not self._opened_sequences:
            return None
        return min(self._opened_sequences, key=lambda r: (self._opened_sequences[r], r))

    def purgeable_before(self) -> int | None:
        """Return the sequence before which nothing is needed, if it has grown.

        The last message always stays: its sequence is what fences us.
        """
        before = min(self._opened_sequences.values(), default=self.sequence)
        while self._bytes_by_sequence and self._bytes_by_sequence[0][0] < before:
            self._bytes_kept -= self._bytes_by_sequence.popleft()[1]
        if before <= self._purged_before:
            return None
        self._purged_before = before
        return before

    def check_invariants(self) -> None:
        """A batch is in flight exactly while the state says so."""
        is_in_flight = self.state not in (WriterState.IDLE, WriterState.FENCED)
        require(bool(self._batch) == is_in_flight, "journal batch and state disagree")
        require(self._bytes_kept >= 0, "journal bytes below zero")

    def _take_batch(self) -> tuple[JournalRecord, ...]:
        batch = [self._pending.popleft()]
        batch_bytes = record_bytes_estimate(batch[0])
        while self._pending:
            batch_bytes += record_bytes_estimate(self._pending[0])
            if batch_bytes > self._batch_bytes_max:
                break
            batch.append(self._pending.popleft())
        return tuple(batch)

    def _append(self, *, cause_id: str) -> AppendJournal:
        self.state = WriterState.APPENDING
        return AppendJournal(
            op_id=self._next_op_id("append"),
            journal_id=self.journal_id,
            message_id=self._message_id(),
            expected_sequence=self.sequence,
            records=self._batch,
            cause_id=cause_id,
        )

    def _read_tail(self, cause_id: str) -> ReadJournalTail:
        op_id = self._next_op_id("tail")
        return ReadJournalTail(op_id=op_id, journal_id=self.journal_id, cause_id=cause_id)

    def _commit(self, sequence: int) -> Committed:
        require(sequence > self.sequence, "journal sequence did not grow")
        batch, self._batch = self._batch, ()
        self.state = WriterState.IDLE
        self.sequence = sequence
        batch_bytes = sum(record_bytes_estimate(record) for record in batch)
        self._bytes_by_sequence.append((sequence, batch_bytes))
        self._bytes_kept += batch_bytes
        return Committed(records=batch, sequence=sequence)

    def _message_id(self) -> str:
        return f"{self.journal_id}:{self._batches}"

    def _next_op_id(self, kind: str) -> str:
        self._attempts += 1
        self._op_id = f"{self.journal_id}:{kind}:{self._attempts}"
        return self._op_id

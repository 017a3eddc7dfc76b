"""A stream of the in-memory broker: JetStream's store, dedupe and bounds, as a pure state machine.

What it follows of nats-server (2.9, `processJetStreamMsg`), in this order: a message id seen within
the window answers with the first copy; then the expected last sequence of the subject; then the
size of the message; then the bounds. Sizes are those of JetStream's memory store.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from libs.runtime.append_rules import headers_bytes
from libs.runtime.bus import (
    Appended,
    PayloadTooLarge,
    StoredMessage,
    StreamFull,
    StreamOptions,
    StreamState,
    WrongLastSequence,
)
from libs.runtime.subject_matching import is_match

MESSAGE_OVERHEAD_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class _Slot:
    message: StoredMessage
    stored_at_ns: int
    size_bytes: int


class MemoryStream:
    """The messages of one stream, within their bounds at every return."""

    def __init__(self, options: StreamOptions) -> None:
        self.options = options
        self._slots: OrderedDict[int, _Slot] = OrderedDict()
        self._by_subject: dict[str, OrderedDict[int, None]] = {}
        self._seen: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._bytes = 0
        self._last_sequence = 0

    @property
    def last_sequence(self) -> int:
        """The sequence given out last, whether or not its message is still there."""
        return self._last_sequence

    def reconfigure(self, options: StreamOptions, *, now_ns: int) -> None:
        """Take new options; what exceeds smaller bounds goes, oldest first."""
        self.options = options
        self.expire(now_ns=now_ns)
        self._drop_oldest_to_fit(messages_more=0, bytes_more=0)

    def store(
        self,
        *,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str],
        message_id: str | None,
        expected_last_subject_sequence: int | None,
        now_ns: int,
    ) -> Appended:
        """Store one message or say why not.

        Raises: WrongLastSequence, StreamFull, PayloadTooLarge; then nothing has changed.
        """
        self.expire(now_ns=now_ns)
        first_sequence = self._seen_sequence(message_id)
        if first_sequence is not None:
            return Appended(stream=self.options.name, sequence=first_sequence, is_duplicate=True)
        if expected_last_subject_sequence is not None:
            self._require_last(subject, expected_last_subject_sequence)
        size_bytes = stored_bytes(subject=subject, payload=payload, headers=headers)
        self._make_room(subject=subject, payload_bytes=len(payload), size_bytes=size_bytes)
        self._last_sequence += 1
        sequence = self._last_sequence
        message = StoredMessage(
            sequence=sequence, subject=subject, payload=payload, headers=headers
        )
        self._slots[sequence] = _Slot(message, now_ns, size_bytes)
        self._by_subject.setdefault(subject, OrderedDict())[sequence] = None
        self._bytes += size_bytes
        if message_id is not None:
            self._seen[message_id] = (sequence, now_ns)
        return Appended(stream=self.options.name, sequence=sequence, is_duplicate=False)

    def get(self, sequence: int) -> StoredMessage | None:
        """Return the message of this sequence if it is still there."""
        slot = self._slots.get(sequence)
        return None if slot is None else slot.message

    def last(self, pattern: str) -> StoredMessage | None:
        """Return the newest message of the subject pattern."""
        sequences = [next(reversed(held)) for held in self._holding(pattern)]
        return self.get(max(sequences)) if sequences else None

    def read(self, pattern: str, *, from_sequence: int) -> list[StoredMessage]:
        """Return the messages of the pattern from a sequence on, in order."""
        sequences: list[int] = []
        for held in self._holding(pattern):
            sequences.extend(sequence for sequence in held if sequence >= from_sequence)
        return [self._slots[sequence].message for sequence in sorted(sequences)]

    def subjects(self, pattern: str) -> dict[str, int]:
        """Return how many messages each subject of the pattern holds."""
        return {
            subject: len(self._by_subject[subject])
            for subject in sorted(self._by_subject)
            if is_match(pattern, subject)
        }

    def state(self) -> StreamState:
        """Return how full the stream is."""
        return StreamState(
            messages=len(self._slots),
            bytes=self._bytes,
            first_sequence=next(iter(self._slots), self._last_sequence + 1),
            last_sequence=self._last_sequence,
        )

    def purge(self, pattern: str, *, before_sequence: int | None, keep: int | None) -> int:
        """Remove the pattern's messages, all but those the limits spare; return how many."""
        doomed = [message.sequence for message in self.read(pattern, from_sequence=1)]
        if before_sequence is not None:
            doomed = [sequence for sequence in doomed if sequence < before_sequence]
        if keep:
            doomed = doomed[:-keep]
        for sequence in doomed:
            self.remove(sequence)
        return len(doomed)

    def remove(self, sequence: int) -> bool:
        """Remove one message; return whether it was there."""
        slot = self._slots.pop(sequence, None)
        if slot is None:
            return False
        self._bytes -= slot.size_bytes
        held = self._by_subject[slot.message.subject]
        del held[sequence]
        if not held:
            del self._by_subject[slot.message.subject]
        return True

    def expire(self, *, now_ns: int) -> None:
        """Remove what is older than the stream's age, and forget old message ids."""
        age_max_ns = self.options.age_max_ns
        while age_max_ns is not None and self._slots:
            sequence, slot = next(iter(self._slots.items()))
            if slot.stored_at_ns + age_max_ns > now_ns:
                break
            self.remove(sequence)
        while self._seen:
            message_id, (_, seen_at_ns) = next(iter(self._seen.items()))
            if seen_at_ns + self.options.duplicate_window_ns > now_ns:
                break
            del self._seen[message_id]

    def check(self) -> None:
        """Assert that the three views of the messages agree and the bounds hold."""
        assert self._bytes == sum(slot.size_bytes for slot in self._slots.values())
        assert list(self._slots) == sorted(self._slots)
        assert sorted(s for held in self._by_subject.values() for s in held) == list(self._slots)
        assert len(self._slots) <= self.options.messages_max
        assert self._bytes <= self.options.bytes_max

    def _seen_sequence(self, message_id: str | None) -> int | None:
        seen = None if message_id is None else self._seen.get(message_id)
        return None if seen is None else seen[0]

    def _require_last(self, subject: str, expected_sequence: int) -> None:
        held = self._by_subject.get(subject)
        actual_sequence = next(reversed(held)) if held else 0
        if actual_sequence != expected_sequence:
            raise WrongLastSequence(
                f"{subject}: expected last sequence {expected_sequence}, is {actual_sequence}",
                actual_sequence=actual_sequence,
            )

    def _make_room(self, *, subject: str, payload_bytes: int, size_bytes: int) -> None:
        options = self.options
        if options.message_bytes_max is not None and payload_bytes > options.message_bytes_max:
            raise PayloadTooLarge(
                f"stream {options.name} takes messages of {options.message_bytes_max} bytes, "
                f"this has {payload_bytes}"
            )
        replaced = self._replaced(subject)
        if options.discard == "new":
            freed_bytes = 0 if replaced is None else self._slots[replaced].size_bytes
            messages = len(self._slots) - (replaced is not None)
            if messages >= options.messages_max:
                raise StreamFull(f"stream {options.name} holds {options.messages_max} messages")
            if self._bytes - freed_bytes + size_bytes > options.bytes_max:
                raise StreamFull(f"stream {options.name} holds {options.bytes_max} bytes")
        if replaced is not None:
            self.remove(replaced)
        self._drop_oldest_to_fit(messages_more=1, bytes_more=size_bytes)

    def _replaced(self, subject: str) -> int | None:
        held = self._by_subject.get(subject)
        limit = self.options.messages_per_subject_max
        if held is None or limit is None or len(held) < limit:
            return None
        return next(iter(held))

    def _drop_oldest_to_fit(self, *, messages_more: int, bytes_more: int) -> None:
        options = self.options
        while self._slots and (
            len(self._slots) + messages_more > options.messages_max
            or self._bytes + bytes_more > options.bytes_max
        ):
            self.remove(next(iter(self._slots)))

    def _holding(self, pattern: str) -> Iterator[OrderedDict[int, None]]:
        held = self._by_subject.get(pattern)
        if held is not None:
            yield held
        elif "*" in pattern or ">" in pattern:
            for subject, held in self._by_subject.items():
                if is_match(pattern, subject):
                    yield held


def stored_bytes(*, subject: str, payload: bytes, headers: Mapping[str, str]) -> int:
    """Return what a message counts against a stream's bytes_max."""
    return len(subject) + headers_bytes(headers) + len(payload) + MESSAGE_OVERHEAD_BYTES

"""A key-value bucket of the in-memory broker."""

from typing import TYPE_CHECKING

from libs.runtime.bus import Entry, KeyEvent, KeyExists, WrongLastSequence, WrongRevision
from libs.runtime.keys import (
    DELETE_HEADERS,
    bucket_stream,
    entry_of,
    event_of,
    is_deleted,
    key_subject,
    live_keys,
)

if TYPE_CHECKING:
    from libs.runtime.memory_broker import MemoryBroker


class MemoryKeys:
    """Compare-and-set on the newest message of each key's subject.

    To watch, subscribe the broker to `watch_subject` and then take `snapshot`: a delivery whose
    sequence is not above the snapshot's last revision is part of it already.
    """

    def __init__(self, broker: "MemoryBroker", *, bucket: str) -> None:
        self._broker = broker
        self._bucket = bucket
        self._stream = bucket_stream(bucket)

    def get(self, key: str, *, now_ns: int) -> Entry | None:
        """Return the latest value."""
        subject = key_subject(self._bucket, key)
        return entry_of(self._broker.last_message(self._stream, subject, now_ns=now_ns))

    def create(self, key: str, value: bytes, *, now_ns: int) -> int:
        """Write a key that must not exist. Raises: KeyExists."""
        subject = key_subject(self._bucket, key)
        last = self._broker.last_message(self._stream, subject, now_ns=now_ns)
        if last is not None and not is_deleted(last):
            raise KeyExists(f"{key} exists", actual_sequence=last.sequence)
        revision = 0 if last is None else last.sequence
        return self.update(key, value, revision=revision, now_ns=now_ns)

    def update(self, key: str, value: bytes, *, revision: int, now_ns: int) -> int:
        """Write if the latest revision is this one. Raises: WrongRevision."""
        subject = key_subject(self._bucket, key)
        try:
            appended = self._broker.append(
                subject, value, expected_last_subject_sequence=revision, now_ns=now_ns
            )
        except WrongLastSequence as refusal:
            raise WrongRevision(str(refusal), actual_sequence=refusal.actual_sequence) from None
        return appended.sequence

    def put(self, key: str, value: bytes, *, now_ns: int) -> int:
        """Write whatever is there."""
        return self._broker.append(key_subject(self._bucket, key), value, now_ns=now_ns).sequence

    def delete(self, key: str, *, now_ns: int, revision: int | None = None) -> None:
        """Leave a marker. Raises: WrongRevision if a revision was given."""
        try:
            self._broker.append(
                key_subject(self._bucket, key),
                b"",
                headers=DELETE_HEADERS,
                expected_last_subject_sequence=revision,
                now_ns=now_ns,
            )
        except WrongLastSequence as refusal:
            raise WrongRevision(str(refusal), actual_sequence=refusal.actual_sequence) from None

    def keys(self, *, now_ns: int) -> list[str]:
        """Return the keys that exist, sorted."""
        messages = self._broker.read_subject(self._stream, self.watch_subject(">"), now_ns=now_ns)
        return live_keys(self._bucket, messages)

    def watch_subject(self, pattern: str) -> str:
        """Return the subject pattern to subscribe to."""
        return f"$KV.{self._bucket}.{pattern}"

    def snapshot(self, pattern: str, *, now_ns: int) -> list[KeyEvent]:
        """Return the newest event of each matching key, in order of revision."""
        messages = self._broker.read_subject(
            self._stream, self.watch_subject(pattern), now_ns=now_ns
        )
        newest = {message.subject: message for message in messages}
        ordered = sorted(newest.values(), key=lambda message: message.sequence)
        return [event_of(self._bucket, message) for message in ordered]

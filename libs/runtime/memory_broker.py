"""A NATS server with JetStream, as a pure state machine: no clock, no tasks, no sockets.

Every method takes the instant `now_ns` at which it happens and is deterministic. What the broker
sends to subscribers gathers in an outbox; whoever drives it (MemoryBus, the simulator) empties the
outbox with `take_deliveries()` after each call and carries each delivery to its subscriber, at once
or after a simulated delay. Nothing in here waits: a fetch returns what is due now, and
`next_due_at_ns` says when to ask again.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from libs.kernel.errors import ConfigError, ContractViolation
from libs.kernel.units import MIB
from libs.runtime.append_rules import (
    EXPECTED_SEQUENCE_HEADER,
    MESSAGE_ID_HEADER,
    append_headers,
    require_one_limit,
    require_payload_fits,
)
from libs.runtime.bus import (
    NO_HEADERS,
    Appended,
    BusMessage,
    BusRefusal,
    ConsumerOptions,
    NoResponders,
    PayloadTooLarge,
    StorageName,
    StoredMessage,
    StreamMissing,
    StreamOptions,
    StreamState,
)
from libs.runtime.keys import bucket_options
from libs.runtime.memory_consumer import MemoryConsumer, MemoryLease
from libs.runtime.memory_keys import MemoryKeys
from libs.runtime.memory_stream import MemoryStream
from libs.runtime.subject_matching import (
    SubjectTable,
    is_overlap,
    require_pattern,
    require_subject,
)

PAYLOAD_BYTES_MAX: Final = MIB
NO_RESPONDERS_RETRY_NS: Final = 250_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message on its way to one subscription."""

    subscription_id: int
    message: BusMessage
    sequence: int | None
    """Its sequence, if a stream stored it."""


@dataclass(frozen=True, slots=True)
class _Interest:
    subscription_id: int
    pattern: str
    queue_group: str | None


class MemoryBroker:
    """Subjects, streams, consumers and buckets of one server."""

    def __init__(self, *, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self.payload_bytes_max = payload_bytes_max
        self._subscription_ids = itertools.count(1)
        self._interests: dict[int, _Interest] = {}
        self._routes: SubjectTable[_Interest] = SubjectTable()
        self._turns: dict[str, int] = {}
        self._streams: dict[str, MemoryStream] = {}
        self._captures: SubjectTable[str] = SubjectTable()
        self._consumers: dict[tuple[str, str], MemoryConsumer] = {}
        self._outbox: list[Delivery] = []

    # Core messages.

    def subscribe(self, pattern: str, *, queue_group: str | None = None) -> int:
        """Register interest; return the id that deliveries will carry."""
        require_pattern(pattern)
        interest = _Interest(next(self._subscription_ids), pattern, queue_group)
        self._interests[interest.subscription_id] = interest
        self._routes.add(pattern, interest)
        return interest.subscription_id

    def unsubscribe(self, subscription_id: int) -> None:
        """Withdraw interest; an unknown id is harmless."""
        interest = self._interests.pop(subscription_id, None)
        if interest is not None:
            self._routes.remove(interest.pattern, interest)

    def publish(self, message: BusMessage, *, now_ns: int) -> int:
        """Send to whoever listens; return how many subscriptions and streams it reached.

        A stream that captures the subject stores it as it would an append, and answers on
        `reply_to`. Raises: PayloadTooLarge, ContractViolation.
        """
        self._require_sendable(message.subject, message.payload, message.headers)
        stream = self._capturing(message.subject)
        if stream is None:
            return self._deliver(message, sequence=None)
        sequence: int | None = None
        try:
            appended = self._store(stream, message, now_ns=now_ns)
            answer: dict[str, object] = {"stream": appended.stream, "seq": appended.sequence}
            if appended.is_duplicate:
                answer["duplicate"] = True
            else:
                sequence = appended.sequence
        except (BusRefusal, PayloadTooLarge) as refusal:
            answer = {"error": {"code": 503, "description": str(refusal)}}
        reached = 1
        if sequence is not None:
            reached += self._deliver(message, sequence=sequence)
        if message.reply_to is not None:
            reply = BusMessage(subject=message.reply_to, payload=json.dumps(answer).encode())
            self._deliver(reply, sequence=None)
        return reached

    def take_deliveries(self) -> list[Delivery]:
        """Empty the outbox."""
        deliveries = self._outbox
        self._outbox = []
        return deliveries

    # Streams.

    def ensure_stream(self, options: StreamOptions, *, now_ns: int) -> None:
        """Create or reconfigure; see Bus.ensure_stream. Raises: ConfigError."""
        for pattern in options.subjects:
            require_pattern(pattern)
        for stream in self._streams.values():
            if stream.options.name != options.name:
                _require_disjoint(options, stream.options)
        stream_before = self._streams.get(options.name)
        if stream_before is None:
            self._streams[options.name] = MemoryStream(options)
        else:
            _require_reconfigurable(before=stream_before.options, after=options)
            stream_before.reconfigure(options, now_ns=now_ns)
        self._captures = SubjectTable()
        for name, stream in self._streams.items():
            for index, pattern in enumerate(stream.options.subjects):
                self._captures.add(pattern, f"{index} {name}")

    def append(
        self,
        subject: str,
        payload: bytes,
        *,
        now_ns: int,
        message_id: str | None = None,
        expected_last_subject_sequence: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Appended:
        """Store in the stream that captures the subject; see Bus.append for the errors."""
        headers = append_headers(
            headers,
            message_id=message_id,
            expected_last_subject_sequence=expected_last_subject_sequence,
        )
        self._require_sendable(subject, payload, headers)
        stream = self._capturing(subject)
        if stream is None:
            raise NoResponders(
                f"no stream captures {subject}", retry_after_ns=NO_RESPONDERS_RETRY_NS
            )
        message = BusMessage(subject=subject, payload=payload, headers=headers)
        appended = self._store(stream, message, now_ns=now_ns)
        if not appended.is_duplicate:
            self._deliver(message, sequence=appended.sequence)
        return appended

    def read_subject(
        self, stream: str, subject: str, *, now_ns: int, from_sequence: int = 1
    ) -> list[StoredMessage]:
        """Return the stored messages of a subject pattern."""
        return self._stream(stream, now_ns).read(subject, from_sequence=from_sequence)

    def last_message(self, stream: str, subject: str, *, now_ns: int) -> StoredMessage | None:
        """Return the newest stored message of the subject pattern."""
        return self._stream(stream, now_ns).last(subject)

    def stream_state(self, stream: str, *, now_ns: int) -> StreamState:
        """Return how full the stream is."""
        return self._stream(stream, now_ns).state()

    def subjects(self, stream: str, pattern: str, *, now_ns: int) -> dict[str, int]:
        """Return the subjects that hold messages, with how many."""
        return self._stream(stream, now_ns).subjects(pattern)

    def purge(
        self,
        stream: str,
        subject: str,
        *,
        now_ns: int,
        before_sequence: int | None = None,
        keep: int | None = None,
    ) -> int:
        """Remove messages; see Bus.purge."""
        require_one_limit(before_sequence=before_sequence, keep=keep)
        held = self._stream(stream, now_ns)
        return held.purge(subject, before_sequence=before_sequence, keep=keep)

    def delete_message(self, stream: str, sequence: int, *, now_ns: int) -> bool:
        """Remove one message; return whether it was there."""
        return self._stream(stream, now_ns).remove(sequence)

    # Leases.

    def ensure_consumer(self, options: ConsumerOptions, *, now_ns: int) -> None:
        """Create or join a durable consumer. Raises: ConfigError, StreamMissing."""
        stream = self._stream(options.stream, now_ns)
        for (stream_name, durable), consumer in self._consumers.items():
            if stream_name != options.stream or durable == options.durable:
                continue
            if stream.options.retention == "work_queue" and is_overlap(
                consumer.options.filter_subject, options.filter_subject
            ):
                raise ConfigError(f"consumer {options.durable}: filter_subject overlaps {durable}")
        present = self._consumers.get((options.stream, options.durable))
        if present is None:
            consumer = MemoryConsumer(options, stream)
            self._consumers[options.stream, options.durable] = consumer
        elif present.options.filter_subject != options.filter_subject:
            raise ConfigError(f"consumer {options.durable}: filter_subject cannot be changed")
        else:
            present.options = options

    def delete_consumer(self, stream: str, durable: str) -> bool:
        """Forget a durable consumer; return whether it was there."""
        return self._consumers.pop((stream, durable), None) is not None

    def fetch(self, stream: str, durable: str, count: int, *, now_ns: int) -> list[MemoryLease]:
        """Lease up to `count` of the messages due now."""
        self._stream(stream, now_ns)
        leases, exhausted = self._consumer(stream, durable).fetch(count, now_ns=now_ns)
        for sequence in exhausted:
            self._advise(stream, durable, sequence)
        return leases

    def next_due_at_ns(self, stream: str, durable: str) -> int | None:
        """Return when a lease of this consumer runs out next or a delayed message comes back."""
        return self._consumer(stream, durable).next_due_at_ns()

    def ack(self, lease: MemoryLease) -> None:
        """The work is done; so, too, from an earlier holder of the same message."""
        self._consumer(lease.stream, lease.durable).finish(lease.message.sequence)

    def nak(self, lease: MemoryLease, *, delay_ns: int, now_ns: int) -> None:
        """Give it back for another delivery after the delay."""
        self._consumer(lease.stream, lease.durable).give_back(
            lease.message.sequence, delay_ns=delay_ns, now_ns=now_ns
        )

    def in_progress(self, lease: MemoryLease, *, now_ns: int) -> None:
        """Start `ack_wait_ns` anew."""
        self._consumer(lease.stream, lease.durable).keep(lease.message.sequence, now_ns=now_ns)

    def term(self, lease: MemoryLease) -> None:
        """Never deliver it again."""
        self.ack(lease)

    # Keys.

    def ensure_bucket(
        self,
        name: str,
        *,
        bytes_max: int,
        now_ns: int,
        age_max_ns: int | None = None,
        storage: StorageName = "memory",
    ) -> MemoryKeys:
        """Create or join a bucket."""
        options = bucket_options(
            name,
            bytes_max=bytes_max,
            age_max_ns=age_max_ns,
            storage=storage,
        )
        self.ensure_stream(options, now_ns=now_ns)
        return MemoryKeys(self, bucket=name)

    def check(self) -> None:
        """Assert the invariants of every stream."""
        for stream in self._streams.values():
            stream.check()

    # Private.

    def _require_sendable(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        require_subject(subject)
        require_payload_fits(payload, headers, payload_bytes_max=self.payload_bytes_max)

    def _capturing(self, subject: str) -> MemoryStream | None:
        found = self._captures.find(subject)
        return self._streams[found[0].split(" ", 1)[1]] if found else None

    def _store(self, stream: MemoryStream, message: BusMessage, *, now_ns: int) -> Appended:
        expected = message.headers.get(EXPECTED_SEQUENCE_HEADER)
        if expected is not None and not expected.isdecimal():
            raise ContractViolation(f"{EXPECTED_SEQUENCE_HEADER}: {expected!r} is no sequence")
        return stream.store(
            subject=message.subject,
            payload=message.payload,
            headers=message.headers,
            message_id=message.headers.get(MESSAGE_ID_HEADER),
            expected_last_subject_sequence=None if expected is None else int(expected),
            now_ns=now_ns,
        )

    def _deliver(self, message: BusMessage, *, sequence: int | None) -> int:
        groups: dict[str, list[_Interest]] = {}
        reached = 0
        for interest in self._routes.find(message.subject):
            if interest.queue_group is None:
                self._send(interest, message, sequence)
                reached += 1
            else:
                groups.setdefault(interest.queue_group, []).append(interest)
        for group, members in groups.items():
            turn = self._turns.get(group, 0)
            self._turns[group] = turn + 1
            self._send(members[turn % len(members)], message, sequence)
        return reached + len(groups)

    def _send(self, interest: _Interest, message: BusMessage, sequence: int | None) -> None:
        self._outbox.append(
            Delivery(subscription_id=interest.subscription_id, message=message, sequence=sequence)
        )

    def _advise(self, stream: str, durable: str, sequence: int) -> None:
        advisory = {
            "type": "io.nats.jetstream.advisory.v1.max_deliver",
            "stream": stream,
            "consumer": durable,
            "stream_seq": sequence,
            "deliveries": self._consumer(stream, durable).options.deliveries_max,
        }
        subject = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{durable}"
        message = BusMessage(subject=subject, payload=json.dumps(advisory).encode())
        self._deliver(message, sequence=None)

    def _stream(self, name: str, now_ns: int) -> MemoryStream:
        stream = self._streams.get(name)
        if stream is None:
            raise StreamMissing(f"no stream {name}")
        stream.expire(now_ns=now_ns)
        return stream

    def _consumer(self, stream: str, durable: str) -> MemoryConsumer:
        consumer = self._consumers.get((stream, durable))
        if consumer is None:
            raise StreamMissing(f"no consumer {durable} of stream {stream}")
        return consumer


def _require_disjoint(options: StreamOptions, other: StreamOptions) -> None:
    for pattern in options.subjects:
        for other_pattern in other.subjects:
            if is_overlap(pattern, other_pattern):
                raise ConfigError(f"stream {options.name}: subjects overlap those of {other.name}")


def _require_reconfigurable(*, before: StreamOptions, after: StreamOptions) -> None:
    for name in ("retention", "storage"):
        if getattr(before, name) != getattr(after, name):
            raise ConfigError(f"stream {after.name}: {name} cannot be changed")

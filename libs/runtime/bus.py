"""The message bus as everybody sees it: subjects, streams, leases, keys and their errors.

Two implementations stand behind these protocols, `nats_bus.NatsBus` (a NATS server, 2.9 or newer)
and `memory_bus.MemoryBus`; one suite holds both to what is written here. Three grades of delivery:

- `publish` and `request` are core messaging: at most once, and nothing is stored or buffered. While
  the broker is away they raise Unavailable at once.
- `append` returns after the broker has stored the message. Unavailable from `append` means "not
  known": repeat it with the same `message_id`, and the broker drops the second copy.
- leases are at least once: what is not acknowledged within `ack_wait_ns` is handed out again.

Everybody's payload is bytes; subjects are dot-separated tokens (`*` one token, `>` the rest).
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias

from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_S

BUS_TIMEOUT_NS: Final = 5 * NS_PER_S
"""Long enough for a busy broker; shorter than the 8 s gap of a lost cluster leader, which the
caller bridges by repeating."""
STREAM_REPLICAS: Final = (1, 3, 5)
"""Copies of a stream that a cluster can vote on; 1 for a broker alone."""
PENDING_MESSAGES_MAX: Final = 65_536
"""Messages that one subscription holds for a slow reader before it drops and counts."""
NO_HEADERS: Final[Mapping[str, str]] = {}

RetentionName: TypeAlias = Literal["limits", "work_queue"]
DiscardName: TypeAlias = Literal["new", "old"]
StorageName: TypeAlias = Literal["file", "memory"]


class PayloadTooLarge(ContractViolation):
    """Payload and headers exceed what the broker takes; nothing was published."""


class NoResponders(Unavailable):
    """Nobody listens on the subject, or no stream captures it."""


class BusRefusal(Exception):
    """The broker is well and refused: its state differs from what the caller expected."""


class WrongLastSequence(BusRefusal):
    """The last sequence of the subject is not the expected one: somebody else wrote meanwhile."""

    def __init__(self, message: str, *, actual_sequence: int | None) -> None:
        super().__init__(message)
        self.actual_sequence = actual_sequence
        """The sequence that the broker reports, where it does."""


class WrongRevision(WrongLastSequence):
    """The key's revision is not the expected one."""


class KeyExists(WrongRevision):
    """The key to be created is there already."""


class StreamFull(BusRefusal):
    """A stream that discards the new has reached its bound; the message is not stored."""


class StreamMissing(BusRefusal):
    """The stream, bucket or consumer does not exist (any more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusMessage:
    """A message as a subscriber sees it."""

    subject: str
    payload: bytes
    reply_to: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message in a stream. Sequences count up from 1 in the whole stream, not per subject."""

    sequence: int
    subject: str
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """The broker's receipt. A duplicate carries the sequence of the copy stored first."""

    stream: str
    sequence: int
    is_duplicate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What a stream captures, and its bounds. Every stream has all three bounds."""

    name: str
    subjects: Sequence[str]
    messages_max: int
    bytes_max: int
    age_max_ns: int | None
    """None keeps a message until another bound or a reader removes it."""
    retention: RetentionName = "limits"
    """A work queue removes a message once it is acknowledged."""
    discard: DiscardName = "new"
    """At the bound: refuse the new message (StreamFull), or drop the oldest."""
    message_bytes_max: int | None = None
    messages_per_subject_max: int | None = None
    """With discard new this drops the subject's oldest message all the same; it never refuses."""
    duplicate_window_ns: int = 120 * NS_PER_S
    storage: StorageName = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerOptions:
    """What a consumer sees of its stream, and its bounds."""

    stream: str
    durable: str
    filter_subject: str
    ack_wait_ns: int
    deliveries_max: int
    leases_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """How full a stream is. An empty stream has first_sequence = last_sequence + 1."""

    messages: int
    bytes: int
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key's value. Revisions are stream sequences: they only grow, with gaps."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUpdated:
    """A watched key has this value now."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDeleted:
    """A watched key was deleted. An entry that dies of age is not announced."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialStateComplete:
    """Everything that the bucket held when the watch began has been delivered; comes once."""


KeyEvent: TypeAlias = KeyUpdated | KeyDeleted | InitialStateComplete


class Subscription(Protocol):
    """Messages of one subject pattern, in order of arrival.

    Overflow is counted in `messages_dropped`, newest dropped, and never raised. Iteration ends
    after `close()`, once what was received before has been read.
    """

    @property
    def messages_dropped(self) -> int:
        """Messages lost to the bound since the subscription began."""

    def __aiter__(self) -> AsyncIterator[BusMessage]: ...

    async def __anext__(self) -> BusMessage: ...

    async def close(self) -> None:
        """Withdraw interest. Calling it twice is harmless."""


class Lease(Protocol):
    """One delivery of a work-queue message, ours until `ack_wait_ns` passes without a sign."""

    @property
    def message(self) -> StoredMessage: ...

    @property
    def delivery_count(self) -> int:
        """1 for the first delivery."""

    async def ack(self) -> None:
        """Done: the message leaves the work queue. Returns after the broker has confirmed.

        Raises: Unavailable where that is not known; the message may then come again.
        """

    async def nak(self, *, delay_ns: int = 0) -> None:
        """Give it back, to be handed out again after the delay."""

    async def in_progress(self) -> None:
        """Still at work: start `ack_wait_ns` anew."""

    async def term(self) -> None:
        """Never deliver it again: a work queue drops it."""


class LeaseConsumer(Protocol):
    """A durable, shared consumer of a stream."""

    async def fetch(self, count: int, *, timeout_ns: int) -> list[Lease]:
        """Lease up to `count` messages: what is there at once, else the first to arrive in time.

        Returns an empty list when the time passes or when `leases_max` are out.
        Raises: Unavailable; StreamMissing when consumer or stream is gone.
        """


class KeyWatch(Protocol):
    """Changes of the keys that match one pattern, each at most once and in order of revision.

    First the present entries, then one InitialStateComplete, then changes. It survives
    reconnects. With a history of 1, changes that overtake each other may be seen as the last.
    """

    def __aiter__(self) -> AsyncIterator[KeyEvent]: ...

    async def __anext__(self) -> KeyEvent: ...

    async def close(self) -> None: ...


class KeyValue(Protocol):
    """A bucket of keys with compare-and-set. A key is dot-separated tokens `[A-Za-z0-9_=/-]+`."""

    async def get(self, key: str) -> Entry | None:
        """Return the latest value, read from the leader; None if absent or deleted."""

    async def create(self, key: str, value: bytes) -> int:
        """Write a key that must not exist; return its revision. Raises: KeyExists."""

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """Write if the latest revision is this one; return the new. Raises: WrongRevision."""

    async def put(self, key: str, value: bytes) -> int:
        """Write whatever is there; return the revision."""

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """Delete, leaving a marker for watchers. Raises: WrongRevision if one was given."""

    async def keys(self) -> list[str]:
        """Return the keys that exist, sorted."""

    async def watch(self, pattern: str = ">") -> KeyWatch:
        """Follow the keys that match; see KeyWatch."""


class CoreBus(Protocol):
    """Messages that nobody stores."""

    @property
    def payload_bytes_max(self) -> int:
        """What payload plus headers may weigh together."""

    @property
    def is_connected(self) -> bool: ...

    @property
    def disconnects(self) -> int:
        """How often the connection was lost since the start."""

    def new_inbox(self) -> str:
        """Return a subject that nobody else uses, for replies."""

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        reply_to: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """Hand the message to whoever listens now.

        Raises: PayloadTooLarge, before anything is sent; ContractViolation for a subject or
        header that cannot be sent; Unavailable while disconnected.
        """

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout_ns: int = BUS_TIMEOUT_NS,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> BusMessage:
        """Publish and return the first reply.

        Raises: NoResponders at once if nobody listens; Unavailable when the time has passed.
        """

    async def subscribe(
        self,
        subject: str,
        *,
        queue_group: str | None = None,
        pending_messages_max: int = PENDING_MESSAGES_MAX,
    ) -> Subscription:
        """Listen to a subject pattern; of a queue group one member gets each message.

        The broker knows of the interest when this returns. Survives reconnects.
        """

    async def flush(self) -> None:
        """Return once the broker has seen everything published before. Raises: Unavailable."""

    async def close(self) -> None:
        """Finish what is under way, deliver what was received, then disconnect."""


class Bus(CoreBus, Protocol):
    """Core messaging and what must survive."""

    async def ensure_stream(self, options: StreamOptions) -> None:
        """Create the stream or bring an existing one to these options; calling again is harmless.

        Raises: ConfigError naming the field that the broker refused, dropped or changed.
        """

    async def append(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str | None = None,
        expected_last_subject_sequence: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_ns: int = BUS_TIMEOUT_NS,
    ) -> Appended:
        """Store the message in the stream that captures its subject.

        A message id already seen within the stream's duplicate window is not stored again; this
        is checked before the expected sequence, so a repeated append is safe. An expected
        sequence of 0 says that the subject is empty.
        Raises: WrongLastSequence, StreamFull, PayloadTooLarge; NoResponders if no stream
        captures the subject; Unavailable when the outcome is not known.
        """

    async def read_subject(
        self, stream: str, subject: str, *, from_sequence: int = 1
    ) -> list[StoredMessage]:
        """Return the stored messages of a subject pattern, complete up to the state at the call.

        Leases nothing. Raises: StreamMissing, Unavailable.
        """

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        """Return the newest stored message of the subject pattern, read from the leader."""

    async def stream_state(self, stream: str) -> StreamState:
        """Return how full the stream is. Raises: StreamMissing."""

    async def subjects(self, stream: str, pattern: str = ">") -> dict[str, int]:
        """Return the subjects that hold messages, with how many, sorted by subject."""

    async def purge(
        self,
        stream: str,
        subject: str,
        *,
        before_sequence: int | None = None,
        keep: int | None = None,
    ) -> int:
        """Remove a subject pattern's messages; return how many.

        At most one of: only those below a sequence, or all but the newest `keep`.
        """

    async def delete_message(self, stream: str, sequence: int) -> bool:
        """Remove one message; return whether it was there."""

    async def lease_consumer(self, options: ConsumerOptions) -> LeaseConsumer:
        """Create or join the durable consumer; members share its messages.

        After `deliveries_max` deliveries a message is handed out no more but stays in the stream;
        `$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.<stream>.<durable>` says so once, in JSON with
        `stream_seq`. Raises: ConfigError, StreamMissing, Unavailable.
        """

    async def delete_consumer(self, stream: str, durable: str) -> bool:
        """Remove a durable consumer; return whether it was there. Its members' fetches then fail.

        Raises: Unavailable.
        """

    async def ensure_bucket(
        self,
        name: str,
        *,
        bytes_max: int,
        age_max_ns: int | None = None,
        storage: StorageName = "file",
    ) -> KeyValue:
        """Create or join a key-value bucket. `age_max_ns` runs anew with each write of a key."""

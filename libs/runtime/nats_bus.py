"""The Bus over a NATS server, 2.9 or newer."""

from collections.abc import Callable, Mapping

from nats.aio.msg import Msg

from libs.runtime.bus import (
    BUS_TIMEOUT_NS,
    NO_HEADERS,
    PENDING_MESSAGES_MAX,
    Appended,
    BusMessage,
    ConsumerOptions,
    StorageName,
    StoredMessage,
    StreamOptions,
    StreamState,
)
from libs.runtime.inbox import Inbox
from libs.runtime.keys import bucket_options
from libs.runtime.nats_connection import (
    CONNECT_TIMEOUT_NS,
    Listener,
    NatsConnection,
    bus_message,
)
from libs.runtime.nats_key_value import NatsKeyValue
from libs.runtime.nats_leases import NatsLeaseConsumer, delete_consumer, ensure_consumer
from libs.runtime.nats_streams import NatsStreams


class NatsSubscription:
    """A bus.Subscription: nats-py's reader hands each message to a bounded inbox at once."""

    def __init__(
        self,
        connection: NatsConnection,
        *,
        messages_max: int,
        on_close: Callable[["NatsSubscription"], None],
    ) -> None:
        self._connection = connection
        self._on_close = on_close
        self._inbox: Inbox[BusMessage] = Inbox(items_max=messages_max)
        self._listener: Listener | None = None

    @property
    def messages_dropped(self) -> int:
        """See Subscription.messages_dropped."""
        overflowed = 0 if self._listener is None else self._listener.overflowed
        return self._inbox.items_dropped + overflowed

    def __aiter__(self) -> "NatsSubscription":
        return self

    async def __anext__(self) -> BusMessage:
        return await anext(self._inbox)

    async def open(self, subject: str, *, queue_group: str | None) -> None:
        """Begin to listen."""
        self._listener = await self._connection.listen(
            subject, self._on_message, queue_group=queue_group
        )

    async def close(self) -> None:
        """See Subscription.close."""
        if self._listener is not None and not self._inbox.is_closed:
            await self._connection.unlisten(self._listener)
        self._inbox.close()
        self._on_close(self)

    def _on_message(self, message: Msg) -> None:
        self._inbox.offer(bus_message(message))


class NatsBus:
    """One client of a NATS server; see bus.Bus for what each method guarantees."""

    def __init__(self, connection: NatsConnection, *, stream_replicas: int = 1) -> None:
        self._connection = connection
        self._streams = NatsStreams(connection, replicas=stream_replicas)
        self._subscriptions: set[NatsSubscription] = set()
        self._consumers: set[NatsLeaseConsumer] = set()

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str,
        timeout_ns: int = CONNECT_TIMEOUT_NS,
        stream_replicas: int = 1,
    ) -> "NatsBus":
        """Connect under a name that the server's monitoring shows.

        Several URLs of one cluster are separated by commas. Waits for the server if need be. Of
        each stream that this client makes the cluster keeps `stream_replicas` copies.
        Raises: Unavailable when the time has passed; ConfigError for a server older than 2.9, a
        wrong URL or refused credentials.
        """
        connection = await NatsConnection.open(url, name=name, timeout_ns=timeout_ns)
        return cls(connection, stream_replicas=stream_replicas)

    @property
    def payload_bytes_max(self) -> int:
        """See CoreBus.payload_bytes_max."""
        return self._connection.payload_bytes_max

    @property
    def is_connected(self) -> bool:
        """See CoreBus.is_connected."""
        return self._connection.is_connected

    @property
    def disconnects(self) -> int:
        """See CoreBus.disconnects."""
        return self._connection.disconnects

    def new_inbox(self) -> str:
        """See CoreBus.new_inbox."""
        return self._connection.new_inbox()

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        reply_to: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """See CoreBus.publish."""
        await self._connection.publish(subject, payload, reply_to=reply_to, headers=headers)

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout_ns: int = BUS_TIMEOUT_NS,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> BusMessage:
        """See CoreBus.request."""
        reply = await self._connection.request(
            subject, payload, timeout_ns=timeout_ns, headers=headers
        )
        return bus_message(reply)

    async def subscribe(
        self,
        subject: str,
        *,
        queue_group: str | None = None,
        pending_messages_max: int = PENDING_MESSAGES_MAX,
    ) -> NatsSubscription:
        """See CoreBus.subscribe."""
        subscription = NatsSubscription(
            self._connection,
            messages_max=pending_messages_max,
            on_close=self._subscriptions.discard,
        )
        await subscription.open(subject, queue_group=queue_group)
        self._subscriptions.add(subscription)
        return subscription

    async def flush(self) -> None:
        """See CoreBus.flush."""
        await self._connection.flush()

    async def close(self) -> None:
        """See CoreBus.close."""
        for subscription in list(self._subscriptions):
            await subscription.close()
        for consumer in list(self._consumers):
            await consumer.close()
        await self._connection.close()

    async def ensure_stream(self, options: StreamOptions) -> None:
        """See Bus.ensure_stream."""
        await self._streams.ensure_stream(options)

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
        """See Bus.append."""
        return await self._streams.append(
            subject,
            payload,
            message_id=message_id,
            expected_last_subject_sequence=expected_last_subject_sequence,
            headers=headers,
            timeout_ns=timeout_ns,
        )

    async def read_subject(
        self, stream: str, subject: str, *, from_sequence: int = 1
    ) -> list[StoredMessage]:
        """See Bus.read_subject."""
        return await self._streams.read_subject(stream, subject, from_sequence=from_sequence)

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        """See Bus.last_message."""
        return await self._streams.last_message(stream, subject)

    async def stream_state(self, stream: str) -> StreamState:
        """See Bus.stream_state."""
        return await self._streams.stream_state(stream)

    async def subjects(self, stream: str, pattern: str = ">") -> dict[str, int]:
        """See Bus.subjects."""
        return await self._streams.subjects(stream, pattern)

    async def purge(
        self,
        stream: str,
        subject: str,
        *,
        before_sequence: int | None = None,
        keep: int | None = None,
    ) -> int:
        """See Bus.purge."""
        return await self._streams.purge(
            stream, subject, before_sequence=before_sequence, keep=keep
        )

    async def delete_message(self, stream: str, sequence: int) -> bool:
        """See Bus.delete_message."""
        return await self._streams.delete_message(stream, sequence)

    async def lease_consumer(
        self,
        stream: str,
        durable: str,
        *,
        filter_subject: str,
        ack_wait_ns: int,
        deliveries_max: int,
        leases_max: int,
    ) -> NatsLeaseConsumer:
        """See Bus.lease_consumer."""
        options = ConsumerOptions(
            stream=stream,
            durable=durable,
            filter_subject=filter_subject,
            ack_wait_ns=ack_wait_ns,
            deliveries_max=deliveries_max,
            leases_max=leases_max,
        )
        await ensure_consumer(self._connection, options)
        consumer = NatsLeaseConsumer(self._connection, stream=stream, durable=durable)
        self._consumers.add(consumer)
        return consumer

    async def delete_consumer(self, stream: str, durable: str) -> bool:
        """See Bus.delete_consumer."""
        for consumer in [c for c in self._consumers if c.is_of(stream, durable)]:
            self._consumers.discard(consumer)
            await consumer.close()
        return await delete_consumer(self._connection, stream=stream, durable=durable)

    async def ensure_bucket(
        self,
        name: str,
        *,
        bytes_max: int,
        history: int = 1,
        age_max_ns: int | None = None,
        storage: StorageName = "file",
    ) -> NatsKeyValue:
        """See Bus.ensure_bucket."""
        options = bucket_options(
            name,
            bytes_max=bytes_max,
            history=history,
            age_max_ns=age_max_ns,
            storage=storage,
        )
        await self._streams.ensure_stream(options, is_bucket=True)
        return NatsKeyValue(self._connection, bucket=name)

"""The Bus over a NATS server, 2.9 or newer."""

from collections.abc import Callable, Mapping

from nats.aio.msg import Msg

from libs.runtime.bus import (
    BUS_TIMEOUT_NS,
    NO_HEADERS,
    PENDING_MESSAGES_MAX,
    BusMessage,
    ConsumerOptions,
    StorageName,
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


class NatsBus(NatsStreams):
    """One client of a NATS server; see bus.Bus for what each method guarantees."""

    def __init__(self, connection: NatsConnection, *, stream_replicas: int = 1) -> None:
        super().__init__(connection, replicas=stream_replicas)
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

    async def lease_consumer(self, options: ConsumerOptions) -> NatsLeaseConsumer:
        """See Bus.lease_consumer."""
        await ensure_consumer(self._connection, options)
        consumer = NatsLeaseConsumer(
            self._connection, stream=options.stream, durable=options.durable
        )
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
        age_max_ns: int | None = None,
        storage: StorageName = "file",
    ) -> NatsKeyValue:
        """See Bus.ensure_bucket."""
        options = bucket_options(
            name,
            bytes_max=bytes_max,
            age_max_ns=age_max_ns,
            storage=storage,
        )
        await self.ensure_stream(options, is_bucket=True)
        return NatsKeyValue(self._connection, bucket=name)

"""The Bus over the in-memory broker: tests and single-process fleets, without a server.

A MemoryHub is the server; each MemoryBus is one client of it. Deliveries reach a subscriber's inbox
at once, and its reader at the next turn of the event loop.
"""

import asyncio
from collections.abc import Callable, Mapping

from libs.kernel.errors import Unavailable
from libs.kernel.units import milliseconds, seconds
from libs.runtime.bus import (
    BUS_TIMEOUT_NS,
    NO_HEADERS,
    PENDING_MESSAGES_MAX,
    Appended,
    BusMessage,
    ConsumerOptions,
    Lease,
    NoResponders,
    StorageName,
    StoredMessage,
    StreamOptions,
    StreamState,
)
from libs.runtime.inbox import Inbox
from libs.runtime.memory_broker import NO_RESPONDERS_RETRY_NS, Delivery, MemoryBroker
from libs.runtime.memory_consumer import MemoryLease
from libs.runtime.memory_hub import RETRY_AFTER_NS, MemoryHub
from libs.runtime.memory_key_value import MemoryKeyValue


class MemoryBus:
    """One client of a hub; see bus.Bus for what each method guarantees."""

    def __init__(self, hub: MemoryHub) -> None:
        self._hub = hub
        self._subscriptions: dict[_MemorySubscription, None] = {}
        self._is_closed = False

    @property
    def payload_bytes_max(self) -> int:
        """What the broker takes."""
        return self._hub.broker.payload_bytes_max

    @property
    def is_connected(self) -> bool:
        """Whether the broker can be reached and this bus is open."""
        return self._hub.is_reachable and not self._is_closed

    @property
    def disconnects(self) -> int:
        """How often the broker went away."""
        return self._hub.disconnects

    def new_inbox(self) -> str:
        """Return a subject that nobody else uses."""
        return self._hub.new_inbox()

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        reply_to: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """See CoreBus.publish."""
        message = BusMessage(subject=subject, payload=payload, reply_to=reply_to, headers=headers)
        self._reach().publish(message, now_ns=self._now_ns())
        self._hub.carry()

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout_ns: int = BUS_TIMEOUT_NS,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> BusMessage:
        """See CoreBus.request."""
        reply_to = self.new_inbox()
        message = BusMessage(subject=subject, payload=payload, reply_to=reply_to, headers=headers)
        replies = await self.subscribe(reply_to, pending_messages_max=1)
        try:
            reached = self._reach().publish(message, now_ns=self._now_ns())
            self._hub.carry()
            if reached == 0:
                retry_after_ns = NO_RESPONDERS_RETRY_NS
                raise NoResponders(f"nobody listens on {subject}", retry_after_ns=retry_after_ns)
            async with asyncio.timeout(seconds(timeout_ns)):
                return await anext(replies)
        except TimeoutError:
            raise Unavailable(
                f"no reply from {subject} in {milliseconds(timeout_ns):.0f} ms",
                retry_after_ns=RETRY_AFTER_NS,
            ) from None
        finally:
            await replies.close()

    async def subscribe(
        self,
        subject: str,
        *,
        queue_group: str | None = None,
        pending_messages_max: int = PENDING_MESSAGES_MAX,
    ) -> "_MemorySubscription":
        """See CoreBus.subscribe."""
        self._reach()
        subscription = _MemorySubscription(
            self._hub,
            subject,
            queue_group=queue_group,
            messages_max=pending_messages_max,
            on_close=self._forget,
        )
        self._subscriptions[subscription] = None
        return subscription

    async def flush(self) -> None:
        """See CoreBus.flush."""
        self._reach()

    async def close(self) -> None:
        """See CoreBus.close."""
        for subscription in list(self._subscriptions):
            await subscription.close()
        self._is_closed = True

    async def ensure_stream(self, options: StreamOptions) -> None:
        """See Bus.ensure_stream."""
        self._reach().ensure_stream(options, now_ns=self._now_ns())

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
        appended = self._reach().append(
            subject,
            payload,
            message_id=message_id,
            expected_last_subject_sequence=expected_last_subject_sequence,
            headers=headers,
            now_ns=self._now_ns(),
        )
        self._hub.carry()
        return appended

    async def read_subject(
        self, stream: str, subject: str, *, from_sequence: int = 1
    ) -> list[StoredMessage]:
        """See Bus.read_subject."""
        return self._reach().read_subject(
            stream, subject, from_sequence=from_sequence, now_ns=self._now_ns()
        )

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        """See Bus.last_message."""
        return self._reach().last_message(stream, subject, now_ns=self._now_ns())

    async def stream_state(self, stream: str) -> StreamState:
        """See Bus.stream_state."""
        return self._reach().stream_state(stream, now_ns=self._now_ns())

    async def subjects(self, stream: str, pattern: str = ">") -> dict[str, int]:
        """See Bus.subjects."""
        return self._reach().subjects(stream, pattern, now_ns=self._now_ns())

    async def purge(
        self,
        stream: str,
        subject: str,
        *,
        before_sequence: int | None = None,
        keep: int | None = None,
    ) -> int:
        """See Bus.purge."""
        return self._reach().purge(
            stream,
            subject,
            before_sequence=before_sequence,
            keep=keep,
            now_ns=self._now_ns(),
        )

    async def delete_message(self, stream: str, sequence: int) -> bool:
        """See Bus.delete_message."""
        return self._reach().delete_message(stream, sequence, now_ns=self._now_ns())

    async def lease_consumer(self, options: ConsumerOptions) -> "_MemoryLeaseConsumer":
        """See Bus.lease_consumer."""
        self._reach().ensure_consumer(options, now_ns=self._now_ns())
        return _MemoryLeaseConsumer(self._hub, stream=options.stream, durable=options.durable)

    async def delete_consumer(self, stream: str, durable: str) -> bool:
        """See Bus.delete_consumer."""
        return self._reach().delete_consumer(stream, durable)

    async def ensure_bucket(
        self,
        name: str,
        *,
        bytes_max: int,
        age_max_ns: int | None = None,
        storage: StorageName = "file",
    ) -> MemoryKeyValue:
        """See Bus.ensure_bucket."""
        keys = self._reach().ensure_bucket(
            name,
            bytes_max=bytes_max,
            age_max_ns=age_max_ns,
            storage=storage,
            now_ns=self._now_ns(),
        )
        return MemoryKeyValue(self._hub, keys, bucket=name)

    def _reach(self) -> MemoryBroker:
        if self._is_closed:
            raise Unavailable("this bus is closed", retry_after_ns=RETRY_AFTER_NS)
        return self._hub.reach()

    def _now_ns(self) -> int:
        return self._hub.clock.now_ns()

    def _forget(self, subscription: "_MemorySubscription") -> None:
        self._subscriptions.pop(subscription, None)


class _MemorySubscription:
    def __init__(
        self,
        hub: MemoryHub,
        subject: str,
        *,
        queue_group: str | None,
        messages_max: int,
        on_close: Callable[["_MemorySubscription"], None],
    ) -> None:
        self._on_close = on_close
        self._hub = hub
        self._inbox: Inbox[BusMessage] = Inbox(items_max=messages_max)
        self._id = hub.add_sink(subject, self._take, queue_group=queue_group)

    @property
    def messages_dropped(self) -> int:
        return self._inbox.items_dropped

    def __aiter__(self) -> "_MemorySubscription":
        return self

    async def __anext__(self) -> BusMessage:
        return await anext(self._inbox)

    async def close(self) -> None:
        self._hub.remove_sink(self._id)
        self._inbox.close()
        self._on_close(self)

    def _take(self, delivery: Delivery) -> None:
        self._inbox.offer(delivery.message)


class _MemoryLeaseHandle:
    def __init__(self, hub: MemoryHub, lease: MemoryLease) -> None:
        self._hub = hub
        self._lease = lease

    @property
    def message(self) -> StoredMessage:
        return self._lease.message

    @property
    def delivery_count(self) -> int:
        return self._lease.delivery_count

    async def ack(self) -> None:
        self._hub.reach().ack(self._lease)
        self._hub.carry()

    async def nak(self, *, delay_ns: int = 0) -> None:
        now_ns = self._hub.clock.now_ns()
        self._hub.reach().nak(self._lease, delay_ns=delay_ns, now_ns=now_ns)
        self._hub.carry()

    async def in_progress(self) -> None:
        self._hub.reach().in_progress(self._lease, now_ns=self._hub.clock.now_ns())

    async def term(self) -> None:
        self._hub.reach().term(self._lease)
        self._hub.carry()


class _MemoryLeaseConsumer:
    def __init__(self, hub: MemoryHub, *, stream: str, durable: str) -> None:
        self._hub = hub
        self._stream = stream
        self._durable = durable

    async def fetch(self, count: int, *, timeout_ns: int) -> list[Lease]:
        clock = self._hub.clock
        deadline_ns = clock.now_ns() + timeout_ns
        while True:
            now_ns = clock.now_ns()
            broker = self._hub.reach()
            leases = broker.fetch(self._stream, self._durable, count, now_ns=now_ns)
            self._hub.carry()
            if leases or now_ns >= deadline_ns:
                return [_MemoryLeaseHandle(self._hub, lease) for lease in leases]
            due_at_ns = broker.next_due_at_ns(self._stream, self._durable)
            wake_at_ns = deadline_ns if due_at_ns is None else min(due_at_ns, deadline_ns)
            await self._hub.wait_for_change(timeout_ns=wake_at_ns - now_ns)

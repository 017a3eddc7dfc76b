"""Leases from a durable JetStream consumer."""

import asyncio

from libs.kernel.errors import ConfigError
from libs.runtime.bus import BUS_TIMEOUT_NS, ConsumerOptions, Lease, StoredMessage, StreamMissing
from libs.runtime.nats_api import ApiRefusal, call
from libs.runtime.nats_connection import NatsConnection
from libs.runtime.nats_pull import Pull, Pulled
from libs.runtime.nats_streams import require_kept


class NatsLease:
    """A bus.Lease. Its four verbs are what JetStream reads from the message's reply subject."""

    def __init__(self, connection: NatsConnection, pulled: Pulled) -> None:
        self._connection = connection
        self._pulled = pulled

    @property
    def message(self) -> StoredMessage:
        """The leased message."""
        return self._pulled.message

    @property
    def delivery_count(self) -> int:
        """1 for the first delivery."""
        return self._pulled.delivery_count

    async def ack(self) -> None:
        """See Lease.ack."""
        await self._connection.request(self._pulled.ack_subject, b"+ACK", timeout_ns=BUS_TIMEOUT_NS)

    async def nak(self, *, delay_ns: int = 0) -> None:
        """See Lease.nak."""
        payload = b"-NAK" if delay_ns == 0 else b'-NAK {"delay": %d}' % delay_ns
        await self._connection.publish(self._pulled.ack_subject, payload)

    async def in_progress(self) -> None:
        """See Lease.in_progress."""
        await self._connection.publish(self._pulled.ack_subject, b"+WPI")

    async def term(self) -> None:
        """See Lease.term."""
        await self._connection.request(
            self._pulled.ack_subject, b"+TERM", timeout_ns=BUS_TIMEOUT_NS
        )


class NatsLeaseConsumer:
    """A bus.LeaseConsumer; concurrent fetches take turns."""

    def __init__(self, connection: NatsConnection, *, stream: str, durable: str) -> None:
        self._connection = connection
        self._pull = Pull(connection, stream=stream, consumer=durable)
        self._stream = stream
        self._durable = durable
        self._turn = asyncio.Lock()
        self._is_open = False

    def is_of(self, stream: str, durable: str) -> bool:
        """Whether this is a member of that consumer."""
        return (self._stream, self._durable) == (stream, durable)

    async def fetch(self, count: int, *, timeout_ns: int) -> list[Lease]:
        """See LeaseConsumer.fetch."""
        async with self._turn:
            if not self._is_open:
                await self._pull.open()
                self._is_open = True
            pulled = await self._pull.pull(count, wait_ns=timeout_ns)
        return [NatsLease(self._connection, one) for one in pulled]

    async def close(self) -> None:
        """Stop receiving; leases that are out stay ours."""
        await self._pull.close()


async def ensure_consumer(connection: NatsConnection, options: ConsumerOptions) -> None:
    """Create or join the durable consumer. Raises: ConfigError, StreamMissing, Unavailable."""
    wanted = {
        "durable_name": options.durable,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": options.ack_wait_ns,
        "max_deliver": options.deliveries_max,
        "max_ack_pending": options.leases_max,
        "filter_subject": options.filter_subject,
        "replay_policy": "instant",
    }
    endpoint = f"CONSUMER.DURABLE.CREATE.{options.stream}.{options.durable}"
    body = {"stream_name": options.stream, "config": wanted}
    try:
        answer = await call(connection, endpoint, body)
    except ApiRefusal as refusal:
        raise ConfigError(f"consumer {options.durable}: {refusal.description}") from None
    require_kept(f"consumer {options.durable}", wanted=wanted, kept=answer["config"])


async def delete_consumer(connection: NatsConnection, *, stream: str, durable: str) -> bool:
    """Remove a durable consumer; return whether it was there. Raises: Unavailable."""
    try:
        await call(connection, f"CONSUMER.DELETE.{stream}.{durable}")
    except StreamMissing:
        return False
    return True

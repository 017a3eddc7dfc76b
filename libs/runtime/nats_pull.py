"""Pulling messages from a JetStream consumer, with nothing left lying in between.

One Pull has one subscription and at most one request open. Messages arrive under their own subject
and status lines under the request's, so a status that belongs to an earlier request is recognised
and dropped. A message that arrives when nobody waits is given back at once (nak): a lease that
nobody knows of would only run out.
"""

import asyncio
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nats.aio.msg import Msg

from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S, seconds
from libs.runtime.bus import StoredMessage, StreamMissing
from libs.runtime.nats_connection import (
    NO_RESPONDERS_STATUS,
    RETRY_AFTER_NS,
    Listener,
    NatsConnection,
    status_of,
)

GATHER_NS: Final = 20 * NS_PER_MS
"""How long a request for what is there stays open where the server does not end it sooner: when
`leases_max` are out, neither 2.9 nor 2.10 does."""
SILENCE_NS: Final = 2 * NS_PER_S
"""After this long past its expiry without a status, a request counts as lost."""
CONFLICT_STATUS: Final = "409"
EXPECTED_CONFLICTS: Final = ("Exceeded MaxAckPending", "Message Size Exceeds", "Exceeded MaxWait")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A message from a consumer and the delivery's place in the consumer's own count."""

    message: StoredMessage
    ack_subject: str
    delivery_count: int
    consumer_sequence: int
    pending: int
    """Messages that the consumer still has for us after this one."""


class Pull:
    """Fetches from one consumer. Not for use by two tasks at once; the caller holds a lock."""

    def __init__(self, connection: NatsConnection, *, stream: str, consumer: str) -> None:
        self._connection = connection
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._consumer = f"consumer {consumer} of stream {stream}"
        self._listener: Listener | None = None
        self._reply_prefix = ""
        self._numbers = itertools.count(1)
        self._open_request = ""
        self._wanted = 0
        self._pulled: list[Pulled] = []
        self._done: asyncio.Future[None] | None = None
        self._naks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Subscribe; must come first."""
        self._reply_prefix = self._connection.new_inbox() + "."
        self._listener = await self._connection.listen(f"{self._reply_prefix}*", self._on_message)

    async def close(self) -> None:
        """Unsubscribe; harmless when done already."""
        if self._listener is not None:
            await self._connection.unlisten(self._listener)
            self._listener = None

    async def pull(self, count: int, *, wait_ns: int) -> list[Pulled]:
        """Return up to `count` messages: what is there now, else the first to come within the wait.

        Raises: Unavailable when the connection is lost or the server is silent; StreamMissing when
        the consumer has gone. What had arrived is returned rather than lost.
        """
        pulled: list[Pulled] = []
        if count > 1 or wait_ns == 0:
            body = {"batch": count, "no_wait": True, "expires": GATHER_NS}
            pulled = await self._ask(body, wanted=count, expires_ns=GATHER_NS)
        if not pulled and wait_ns > 0:
            pulled = await self._ask({"batch": 1, "expires": wait_ns}, wanted=1, expires_ns=wait_ns)
        return pulled

    async def _ask(
        self, body: Mapping[str, object], *, wanted: int, expires_ns: int
    ) -> list[Pulled]:
        self._open_request = self._reply_prefix + str(next(self._numbers))
        self._wanted = wanted
        self._pulled = []
        done = asyncio.get_running_loop().create_future()
        self._done = done
        forget_hook = self._connection.on_lost(self._on_lost)
        try:
            async with asyncio.timeout(seconds(expires_ns + SILENCE_NS)):
                await self._connection.publish(
                    self._next_subject, json.dumps(body).encode(), reply_to=self._open_request
                )
                await done
        except TimeoutError:
            if not self._pulled:
                raise self._unavailable("is silent") from None
        except Unavailable:
            if not self._pulled:
                raise
        except asyncio.CancelledError:
            self._give_back(self._pulled)
            raise
        finally:
            self._done = None
            forget_hook()
        return self._pulled

    def _on_message(self, message: Msg) -> None:
        if message.subject.startswith(self._reply_prefix):
            if message.subject == self._open_request:
                self._on_status(message)
            return
        pulled = read_pulled(message)
        if self._done is None or self._done.done():
            self._give_back([pulled])
            return
        self._pulled.append(pulled)
        if len(self._pulled) >= self._wanted:
            self._done.set_result(None)

    def _on_status(self, message: Msg) -> None:
        """A status ends the request: 404 and 408 mean that there is no more, 409 may mean worse."""
        if self._done is None or self._done.done():
            return
        status = status_of(message)
        description = (message.headers or {}).get("Description", "")
        if status == NO_RESPONDERS_STATUS or (
            status == CONFLICT_STATUS and not description.startswith(EXPECTED_CONFLICTS)
        ):
            if "Deleted" in description:
                self._done.set_exception(StreamMissing(f"{self._consumer} has gone"))
            else:
                self._done.set_exception(self._unavailable(description or "does not answer"))
            return
        self._done.set_result(None)

    def _on_lost(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(self._unavailable("lost its connection"))

    def _give_back(self, pulled: list[Pulled]) -> None:
        for one in pulled:
            task = asyncio.get_running_loop().create_task(self._nak(one.ack_subject))
            self._naks.add(task)
            task.add_done_callback(self._naks.discard)

    async def _nak(self, ack_subject: str) -> None:
        try:
            await self._connection.publish(ack_subject, b"-NAK")
        except Unavailable:
            return  # The lease runs out instead.

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable(f"{self._consumer} {what}", retry_after_ns=RETRY_AFTER_NS)


def read_pulled(message: Msg) -> Pulled:
    """Read a delivery; its reply subject tells where it stands.

    `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>`, with
    domain and account before the stream, and a random token at the end, on newer servers.
    """
    tokens = message.reply.split(".")
    first = 4 if len(tokens) == 9 else 6
    deliveries, sequence, consumer_sequence, _, pending = tokens[first : first + 5]
    return Pulled(
        message=StoredMessage(
            sequence=int(sequence),
            subject=message.subject,
            payload=message.data,
            headers=message.headers or {},
        ),
        ack_subject=message.reply,
        delivery_count=int(deliveries),
        consumer_sequence=int(consumer_sequence),
        pending=int(pending),
    )

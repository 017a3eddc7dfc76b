"""One connection to NATS that comes back whatever happens, and its replies.

It adds to nats-py: requests fail at once when the connection is lost instead of running into their
time-out; nothing is buffered while the server is away; drops are counted, never printed; a client
that nats-py has closed for good (it does so on most `-ERR`) or that has not come back within
REPLACE_AFTER_S is replaced by a new one with the same subscriptions.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as ClientSubscription

from libs.kernel.errors import ConfigError, ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S, milliseconds, seconds
from libs.runtime.append_rules import require_payload_fits
from libs.runtime.bus import NO_HEADERS, BusMessage, NoResponders
from libs.runtime.nats_server_search import parse_version, require_version
from libs.runtime.subject_matching import require_pattern, require_subject

RECONNECT_WAIT_S: Final = 0.1
PING_INTERVAL_S: Final = 5
PINGS_OUTSTANDING_MAX: Final = 2
REPLACE_AFTER_S: Final = 20.0
FLUSH_TIMEOUT_S: Final = 5.0
DRAIN_TIMEOUT_S: Final = 10
CONNECT_TIMEOUT_NS: Final = 30 * NS_PER_S
RETRY_AFTER_NS: Final = 250 * NS_PER_MS
CLIENT_PENDING_MAX: Final = 1_048_576
"""nats-py's own queue in front of ours: one burst off the socket, never the bound that counts."""
STATUS_HEADER: Final = "Status"
NO_RESPONDERS_STATUS: Final = "503"

Handler: TypeAlias = Callable[[Msg], None]

_log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Listener:
    """A subscription that outlives the client it was made on."""

    subject: str
    queue_group: str
    handler: Handler
    overflowed: int = 0
    """Messages that nats-py itself dropped."""
    on_client: ClientSubscription | None = field(default=None, repr=False)


class NatsConnection:
    """Core messaging over one nats-py client at a time."""

    def __init__(self, url: str, *, name: str) -> None:
        self._url = url
        self._label = _without_credentials(url)
        self._name = name
        self._client = Client()
        self._listeners: dict[Listener, None] = {}
        self._replies: dict[str, asyncio.Future[Msg]] = {}
        self._reply_numbers = itertools.count(1)
        self._reply_prefix = ""
        self._lost_hooks: dict[Callable[[], None], None] = {}
        self._replacing: asyncio.Task[None] | None = None
        self._last_error: Exception | None = None
        self._is_closing = False
        self.disconnects = 0

    @classmethod
    async def open(
        cls, url: str, *, name: str, timeout_ns: int = CONNECT_TIMEOUT_NS
    ) -> "NatsConnection":
        """Connect, waiting for the server if need be; several URLs are separated by commas.

        Raises: Unavailable when the time has passed; ConfigError for a server too old or a URL
        or credentials that cannot work.
        """
        connection = cls(url, name=name)
        try:
            async with asyncio.timeout(seconds(timeout_ns)):
                await connection._connect()
        except TimeoutError:
            await connection.close()
            raise connection._not_reached() from None
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def is_connected(self) -> bool:
        """Whether a message published now would be sent now."""
        return self._client.is_connected and not self._is_closing

    @property
    def payload_bytes_max(self) -> int:
        """What the server said it takes."""
        return self._client.max_payload

    def new_inbox(self) -> str:
        """Return a subject that nobody else uses."""
        return self._client.new_inbox()

    def on_lost(self, hook: Callable[[], None]) -> Callable[[], None]:
        """Call the hook at each loss of the connection; return how to stop that."""
        self._lost_hooks[hook] = None
        return lambda: self._lost_hooks.pop(hook, None)

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        reply_to: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """See CoreBus.publish."""
        require_subject(subject)
        require_payload_fits(payload, headers, payload_bytes_max=self.payload_bytes_max)
        if not self.is_connected:
            raise _unavailable("not connected to NATS")
        try:
            await self._client.publish(
                subject, payload, reply_to or "", dict(headers) if headers else None
            )
        except (nats.errors.BadSubjectError, nats.errors.BadHeaderError) as error:
            raise ContractViolation(f"{subject}: {error}") from None
        except (nats.errors.Error, OSError) as error:
            raise _unavailable(f"{subject}: {error}") from None

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout_ns: int,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Msg:
        """Publish and return the first reply. Raises: NoResponders, Unavailable."""
        token = str(next(self._reply_numbers))
        reply: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._replies[token] = reply
        try:
            async with asyncio.timeout(seconds(timeout_ns)):
                await self.publish(
                    subject, payload, reply_to=self._reply_prefix + token, headers=headers
                )
                message = await reply
        except TimeoutError:
            raise _unavailable(
                f"no reply from {subject} in {milliseconds(timeout_ns):.0f} ms"
            ) from None
        finally:
            self._replies.pop(token, None)
        if status_of(message) == NO_RESPONDERS_STATUS:
            raise NoResponders(f"nobody listens on {subject}", retry_after_ns=RETRY_AFTER_NS)
        return message

    async def listen(
        self, subject: str, handler: Handler, *, queue_group: str | None = None
    ) -> Listener:
        """Call the handler, which must not wait, with each message until `unlisten`."""
        require_pattern(subject)
        if not self.is_connected:
            raise _unavailable("not connected to NATS")
        listener = Listener(subject=subject, queue_group=queue_group or "", handler=handler)
        self._listeners[listener] = None
        try:
            await self._attach(listener)
            # A request of another client may be on its way at once: let the server know first.
            await self.flush()
        except BaseException:
            await self.unlisten(listener)
            raise
        return listener

    async def unlisten(self, listener: Listener) -> None:
        """Withdraw interest; harmless when done already or disconnected."""
        self._listeners.pop(listener, None)
        on_client = listener.on_client
        listener.on_client = None
        if on_client is not None and not self._client.is_closed:
            try:
                await on_client.unsubscribe()
            except (nats.errors.Error, OSError):
                return  # The server forgets it with the connection.

    async def flush(self) -> None:
        """Return once the server has seen everything published and subscribed before.

        An echo to ourselves, not nats-py's flush: its PING overtakes what waits to be written (it
        goes to the socket directly), so that its PONG says nothing about a SUB just made. Seen as
        a subscription that missed the first messages, about once in 50 tries.
        """
        token = str(next(self._reply_numbers))
        subject = self._reply_prefix + token
        echo: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._replies[token] = echo
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self.publish(subject, b"")
                await echo
        except TimeoutError:
            raise _unavailable(f"flush: no echo in {FLUSH_TIMEOUT_S:g} s") from None
        finally:
            self._replies.pop(token, None)

    async def close(self) -> None:
        """Deliver what was received, send what was published, disconnect. Never raises."""
        if self._is_closing:
            return
        if self._replacing is not None:
            self._replacing.cancel()
        try:
            if self.is_connected and self._reply_prefix:
                await self.flush()
        except Unavailable as error:
            self._last_error = error
        self._is_closing = True
        self._fail_replies()
        await self._discard_client()

    async def _connect(self) -> None:
        """Make a client, check the server and put every listener on it."""
        try:
            await self._client.connect(
                self._url.split(","),
                name=self._name,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=PINGS_OUTSTANDING_MAX,
                connect_timeout=PING_INTERVAL_S,
                flush_timeout=FLUSH_TIMEOUT_S,
                drain_timeout=DRAIN_TIMEOUT_S,
            )
        except nats.errors.Error as error:
            raise ConfigError(f"nats url {self._label}: {error}") from None
        version = str(self._client.connected_server_version)
        require_version(parse_version(version, where=self._label), where=self._label)
        self._reply_prefix = self._client.new_inbox() + "."
        await self._client.subscribe(f"{self._reply_prefix}*", cb=self._on_reply)
        for listener in list(self._listeners):
            await self._attach(listener)
        await self.flush()

    async def _attach(self, listener: Listener) -> None:
        async def hand_over(message: Msg) -> None:
            listener.handler(message)

        try:
            listener.on_client = await self._client.subscribe(
                listener.subject,
                queue=listener.queue_group,
                cb=hand_over,
                pending_msgs_limit=CLIENT_PENDING_MAX,
            )
        except (nats.errors.Error, OSError) as error:
            raise _unavailable(f"subscribe to {listener.subject}: {error}") from None

    async def _on_reply(self, message: Msg) -> None:
        # The token is our own; a stranger's message for it is dropped.
        reply = self._replies.get(message.subject[len(self._reply_prefix) :])
        if reply is not None and not reply.done():
            reply.set_result(message)

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            for listener in self._listeners:
                if listener.on_client is error.sub:
                    listener.overflowed += 1
            return
        self._last_error = error
        _log.debug("nats_error", error=str(error), error_type=type(error).__name__)

    async def _on_disconnected(self) -> None:
        if self._is_closing:
            return
        self.disconnects += 1
        _log.warning("nats_disconnected", url=self._label)
        self._fail_replies()
        for hook in list(self._lost_hooks):
            hook()
        self._ensure_replacing(after_s=REPLACE_AFTER_S)

    async def _on_reconnected(self) -> None:
        _log.info("nats_reconnected", url=self._label)
        if self._replacing is not None:
            self._replacing.cancel()
            self._replacing = None

    async def _on_closed(self) -> None:
        if not self._is_closing:
            self._ensure_replacing(after_s=RECONNECT_WAIT_S, anew=True)

    def _ensure_replacing(self, *, after_s: float, anew: bool = False) -> None:
        if self._replacing is not None and not self._replacing.done():
            if not anew or self._replacing is asyncio.current_task():
                return
            self._replacing.cancel()
        self._replacing = asyncio.get_running_loop().create_task(self._replace(after_s))

    async def _replace(self, after_s: float) -> None:
        """Put a new client in the place of one that does not come back."""
        while True:
            await asyncio.sleep(after_s)
            _log.warning("nats_client_replaced", url=self._label)
            await self._discard_client()
            self._client = Client()
            try:
                async with asyncio.timeout(REPLACE_AFTER_S):
                    await self._connect()
                return
            except (TimeoutError, nats.errors.Error, OSError, ConfigError, Unavailable) as error:
                self._last_error = error
                after_s = RECONNECT_WAIT_S

    async def _discard_client(self) -> None:
        client = self._client
        client._closed_cb = None
        client._disconnected_cb = None
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await client.close()
        except (nats.errors.Error, OSError, TimeoutError, AssertionError) as error:
            self._last_error = error

    def _fail_replies(self) -> None:
        replies = list(self._replies.values())
        for reply in replies:
            if not reply.done():
                reply.set_exception(_unavailable("the connection to NATS was lost"))

    def _not_reached(self) -> Exception:
        reason = "" if self._last_error is None else f": {self._last_error}"
        text = f"nats url {self._label}: cannot connect{reason}"
        if "authorization" in reason.lower():
            return ConfigError(text)
        return _unavailable(text)


def bus_message(message: Msg) -> BusMessage:
    """Return what nats-py received as the bus's own message."""
    return BusMessage(
        subject=message.subject,
        payload=message.data,
        reply_to=message.reply or None,
        headers=message.headers or {},
    )


def status_of(message: Msg) -> str | None:
    """Return the status of a message with which the server answers itself, such as 404."""
    if message.headers is None or message.data:
        return None
    return message.headers.get(STATUS_HEADER)


def _unavailable(text: str) -> Unavailable:
    return Unavailable(text, retry_after_ns=RETRY_AFTER_NS)


def _without_credentials(url: str) -> str:
    return ",".join(part.rpartition("@")[2] for part in url.split(","))

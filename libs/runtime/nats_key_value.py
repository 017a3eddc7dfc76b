"""Key-value buckets on JetStream, in the layout that every NATS client knows.

A watch reads the bucket's stream with a consumer of its own and starts it anew, after the last
revision seen, whenever the connection was lost, the server fell silent or a delivery was skipped.
It begins from nothing again where the stream itself did (memory storage after a restart).
"""

import asyncio
from typing import Final

import structlog

from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.bus import (
    PENDING_MESSAGES_MAX,
    BusRefusal,
    Entry,
    InitialStateComplete,
    KeyEvent,
    KeyExists,
    WrongLastSequence,
    WrongRevision,
)
from libs.runtime.inbox import Inbox
from libs.runtime.keys import (
    DELETE_HEADERS,
    bucket_stream,
    entry_of,
    event_of,
    is_deleted,
    key_subject,
    live_keys,
)
from libs.runtime.nats_connection import NatsConnection
from libs.runtime.nats_pull import Pulled
from libs.runtime.nats_streams import NatsStreams, StreamReader

WATCH_BATCH: Final = 256
WATCH_WAIT_NS: Final = 5 * NS_PER_S
"""A watch asks anew this often; the longest that a lost request can hide a change, plus 2 s."""

_log = structlog.get_logger(__name__)


class NatsKeyValue:
    """A bus.KeyValue."""

    def __init__(self, connection: NatsConnection, *, bucket: str) -> None:
        self._connection = connection
        self._streams = NatsStreams(connection)
        self._bucket = bucket
        self._stream = bucket_stream(bucket)

    async def get(self, key: str) -> Entry | None:
        """See KeyValue.get."""
        subject = key_subject(self._bucket, key)
        return entry_of(await self._streams.last_message(self._stream, subject))

    async def create(self, key: str, value: bytes) -> int:
        """See KeyValue.create."""
        subject = key_subject(self._bucket, key)
        try:
            return await self.update(key, value, revision=0)
        except WrongRevision as refusal:
            last = await self._streams.last_message(self._stream, subject)
            if last is None or not is_deleted(last):
                raise KeyExists(f"{key} exists", actual_sequence=refusal.actual_sequence) from None
        # The key was deleted: its marker is what must not have changed.
        try:
            return await self.update(key, value, revision=last.sequence)
        except WrongRevision as refusal:
            actual_sequence = refusal.actual_sequence
            raise KeyExists(f"{key} exists", actual_sequence=actual_sequence) from None

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """See KeyValue.update."""
        subject = key_subject(self._bucket, key)
        try:
            appended = await self._streams.append(
                subject, value, expected_last_subject_sequence=revision
            )
        except WrongLastSequence as refusal:
            raise WrongRevision(str(refusal), actual_sequence=refusal.actual_sequence) from None
        return appended.sequence

    async def put(self, key: str, value: bytes) -> int:
        """See KeyValue.put."""
        appended = await self._streams.append(key_subject(self._bucket, key), value)
        return appended.sequence

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """See KeyValue.delete."""
        try:
            await self._streams.append(
                key_subject(self._bucket, key),
                b"",
                headers=DELETE_HEADERS,
                expected_last_subject_sequence=revision,
            )
        except WrongLastSequence as refusal:
            raise WrongRevision(str(refusal), actual_sequence=refusal.actual_sequence) from None

    async def keys(self) -> list[str]:
        """See KeyValue.keys."""
        state = await self._streams.stream_state(self._stream)
        reader = StreamReader(self._connection, stream=self._stream)
        try:
            pending = await reader.open(
                f"$KV.{self._bucket}.>", from_sequence=None, is_headers_only=True
            )
            messages = await reader.read(pending=pending, last_sequence=state.last_sequence)
        finally:
            await reader.close()
        return live_keys(self._bucket, messages)

    async def watch(self, pattern: str = ">") -> "NatsKeyWatch":
        """See KeyValue.watch."""
        watch = NatsKeyWatch(self._connection, bucket=self._bucket, pattern=pattern)
        await watch.open()
        return watch


class NatsKeyWatch:
    """A bus.KeyWatch."""

    def __init__(self, connection: NatsConnection, *, bucket: str, pattern: str) -> None:
        self._connection = connection
        self._bucket = bucket
        self._stream = bucket_stream(bucket)
        self._subject = f"$KV.{bucket}.{pattern}"
        self._inbox: Inbox[KeyEvent] = Inbox(items_max=PENDING_MESSAGES_MAX)
        self._reader = StreamReader(connection, stream=self._stream)
        self._task: asyncio.Task[None] | None = None
        self._last_revision = 0
        self._is_complete = False

    def __aiter__(self) -> "NatsKeyWatch":
        return self

    async def __anext__(self) -> KeyEvent:
        return await anext(self._inbox)

    async def open(self) -> None:
        """Begin; raises what the first attempt meets."""
        await self._start()
        self._task = asyncio.get_running_loop().create_task(self._follow_for_ever())

    async def close(self) -> None:
        """Stop; events received before can still be read."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._inbox.close()
        try:
            await self._reader.close()
        except Unavailable:
            return  # The server forgets the consumer by itself.

    async def _follow_for_ever(self) -> None:
        while not self._inbox.is_closed:
            try:
                await self._follow()
            except Unavailable as error:
                _log.debug("key_watch_restarts", bucket=self._bucket, reason=str(error))
                await asyncio.sleep(seconds(error.retry_after_ns))
            except BusRefusal as error:
                # StreamMissing here is either our reader, which a restarted server forgets, or
                # the bucket itself, which _start below finds out.
                _log.debug("key_watch_restarts", bucket=self._bucket, reason=str(error))
            try:
                await self._start()
            except Unavailable as error:
                _log.debug("key_watch_waits", bucket=self._bucket, reason=str(error))
            except BusRefusal as error:
                self._inbox.fail(error)

    async def _start(self) -> None:
        """Open a reader after what has been seen."""
        await self._reader.close()
        self._reader = StreamReader(self._connection, stream=self._stream)
        state = await NatsStreams(self._connection).stream_state(self._stream)
        if state.last_sequence < self._last_revision:
            self._last_revision = 0
        from_sequence = None if self._last_revision == 0 else self._last_revision + 1
        pending = await self._reader.open(self._subject, from_sequence=from_sequence)
        if pending == 0:
            self._complete()

    async def _follow(self) -> None:
        """Deliver until something goes wrong."""
        pull = self._reader.pull
        if pull is None:
            raise Unavailable("the watch has no reader", retry_after_ns=NS_PER_S)
        consumer_sequence = 0
        while not self._inbox.is_closed:
            for pulled in await pull.pull(WATCH_BATCH, wait_ns=WATCH_WAIT_NS):
                consumer_sequence += 1
                if pulled.consumer_sequence != consumer_sequence:
                    raise Unavailable("a delivery was skipped", retry_after_ns=0)
                self._deliver(pulled)

    def _deliver(self, pulled: Pulled) -> None:
        self._last_revision = pulled.message.sequence
        if not self._inbox.offer(event_of(self._bucket, pulled.message)):
            self._inbox.fail(Unavailable("the watch fell behind", retry_after_ns=NS_PER_S))
        if pulled.pending == 0:
            self._complete()

    def _complete(self) -> None:
        if not self._is_complete:
            self._is_complete = True
            self._inbox.offer(InitialStateComplete())

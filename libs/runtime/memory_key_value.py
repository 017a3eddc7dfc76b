"""The KeyValue of the in-memory bus: MemoryKeys behind the bus's own protocol."""

from libs.kernel.errors import Unavailable
from libs.runtime.bus import (
    PENDING_MESSAGES_MAX,
    Entry,
    InitialStateComplete,
    KeyEvent,
    StoredMessage,
)
from libs.runtime.inbox import Inbox
from libs.runtime.keys import event_of
from libs.runtime.memory_broker import Delivery
from libs.runtime.memory_hub import RETRY_AFTER_NS, MemoryHub
from libs.runtime.memory_keys import MemoryKeys


class MemoryKeyWatch:
    """A bus.KeyWatch; a reader that falls too far behind gets Unavailable, never a gap."""

    def __init__(self, hub: MemoryHub, keys: MemoryKeys, *, bucket: str, pattern: str) -> None:
        self._hub = hub
        self._bucket = bucket
        self._inbox: Inbox[KeyEvent] = Inbox(items_max=PENDING_MESSAGES_MAX)
        self._id = hub.add_sink(keys.watch_subject(pattern), self._take)
        for event in keys.snapshot(pattern, now_ns=hub.clock.now_ns()):
            self._inbox.offer(event)
        self._inbox.offer(InitialStateComplete())

    def __aiter__(self) -> "MemoryKeyWatch":
        return self

    async def __anext__(self) -> KeyEvent:
        return await anext(self._inbox)

    async def close(self) -> None:
        self._hub.remove_sink(self._id)
        self._inbox.close()

    def _take(self, delivery: Delivery) -> None:
        if delivery.sequence is None:
            return
        message = StoredMessage(
            sequence=delivery.sequence,
            subject=delivery.message.subject,
            payload=delivery.message.payload,
            headers=delivery.message.headers,
        )
        if not self._inbox.offer(event_of(self._bucket, message)):
            overflow = Unavailable("the watch fell behind", retry_after_ns=RETRY_AFTER_NS)
            self._inbox.fail(overflow)


class MemoryKeyValue:
    """A bus.KeyValue of one hub."""

    def __init__(self, hub: MemoryHub, keys: MemoryKeys, *, bucket: str) -> None:
        self._hub = hub
        self._keys = keys
        self._bucket = bucket

    async def get(self, key: str) -> Entry | None:
        self._hub.reach()
        return self._keys.get(key, now_ns=self._hub.clock.now_ns())

    async def create(self, key: str, value: bytes) -> int:
        self._hub.reach()
        revision = self._keys.create(key, value, now_ns=self._hub.clock.now_ns())
        self._hub.carry()
        return revision

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        self._hub.reach()
        now_ns = self._hub.clock.now_ns()
        revision_after = self._keys.update(key, value, revision=revision, now_ns=now_ns)
        self._hub.carry()
        return revision_after

    async def put(self, key: str, value: bytes) -> int:
        self._hub.reach()
        revision = self._keys.put(key, value, now_ns=self._hub.clock.now_ns())
        self._hub.carry()
        return revision

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        self._hub.reach()
        self._keys.delete(key, revision=revision, now_ns=self._hub.clock.now_ns())
        self._hub.carry()

    async def keys(self) -> list[str]:
        self._hub.reach()
        return self._keys.keys(now_ns=self._hub.clock.now_ns())

    async def watch(self, pattern: str = ">") -> MemoryKeyWatch:
        self._hub.reach()
        return MemoryKeyWatch(self._hub, self._keys, bucket=self._bucket, pattern=pattern)

"""A bounded queue between a connection's reader, which must never wait, and a consumer."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Inbox(Generic[ItemT]):
    """Items in order of arrival, at most `items_max`; at the bound the newest is dropped, counted.

    An async iterator for any number of readers, each item to one of them. It ends after `close`
    once everything received before has been read; after `fail` it raises the failure instead.
    """

    def __init__(self, *, items_max: int) -> None:
        assert items_max > 0
        self._items_max = items_max
        self._items: deque[ItemT] = deque()
        self._readers: deque[asyncio.Future[None]] = deque()
        self._is_closed = False
        self._failure: Exception | None = None
        self.items_dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will arrive."""
        return self._is_closed

    def offer(self, item: ItemT) -> bool:
        """Add an item without waiting; return whether there was room. Closed drops uncounted."""
        if self._is_closed:
            return False
        if len(self._items) >= self._items_max:
            self.items_dropped += 1
            return False
        self._items.append(item)
        self._wake_one()
        return True

    def close(self) -> None:
        """Accept nothing more; readers get what is left, then the end."""
        self._is_closed = True
        while self._readers:
            self._wake_one()

    def fail(self, failure: Exception) -> None:
        """Close; readers get what is left, then this failure."""
        if not self._is_closed:
            self._failure = failure
            self.close()

    def __aiter__(self) -> "Inbox[ItemT]":
        return self

    async def __anext__(self) -> ItemT:
        while not self._items:
            if self._failure is not None:
                raise self._failure
            if self._is_closed:
                raise StopAsyncIteration
            await self._wait()
        return self._items.popleft()

    async def _wait(self) -> None:
        reader: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        try:
            await reader
        except asyncio.CancelledError:
            if reader.done() and not reader.cancelled():
                self._wake_one()  # The wake-up was ours but we leave: pass it on.
            raise

    def _wake_one(self) -> None:
        while self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_result(None)
                return

"""Containers with a bound; what falls out is returned, never dropped in silence."""

from collections import OrderedDict
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class RecentMap(Generic[KeyT, ValueT]):
    """The most recently added entries, at most `entries_max`; adding past it evicts the oldest."""

    def __init__(self, *, entries_max: int) -> None:
        assert entries_max > 0
        self._entries_max = entries_max
        self._entries: OrderedDict[KeyT, ValueT] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: KeyT) -> bool:
        return key in self._entries

    def get(self, key: KeyT) -> ValueT | None:
        """Return the value, without refreshing its age."""
        return self._entries.get(key)

    def values(self) -> list[ValueT]:
        """Return the values, the oldest first."""
        return list(self._entries.values())

    def items(self) -> list[tuple[KeyT, ValueT]]:
        """Return keys and values, the oldest first."""
        return list(self._entries.items())

    def oldest(self) -> ValueT | None:
        """Return the value that the bound would evict next."""
        return next(iter(self._entries.values()), None)

    def put(self, key: KeyT, value: ValueT) -> ValueT | None:
        """Add or replace an entry as the newest; return the value evicted by the bound, if any."""
        self._entries.pop(key, None)
        self._entries[key] = value
        if len(self._entries) <= self._entries_max:
            return None
        return self._entries.popitem(last=False)[1]

    def pop(self, key: KeyT) -> ValueT | None:
        """Remove and return the entry, or None if it is not there."""
        return self._entries.pop(key, None)

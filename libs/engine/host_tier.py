"""Which KV blocks lie in host memory, by prefix hash, and which make room; pure.

    reserve -> arriving --commit--> held --evicted, drop--> gone
                  |
                  +--abandon--> gone

A block is known by the hash of all tokens up to its end, as on the device, and lies in a numbered
slot, the same on every rank of a replica. It counts as held, and can be found, only once every rank
has all of it.

Blocks hang together in chains: each but the first has the block before it as its parent. Only a
block without children is evicted, the least recently used first; so a chain loses its end and never
its middle, and whoever finds a block finds all before it. What a waiting sequence wants to return
to is not evicted at all.
"""

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from libs.kernel.core import require


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLink:
    """One block of a chain, as it is offered."""

    block_hash: int
    parent_hash: int | None
    """None for the first block of a prefix."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    slot: int
    parent_hash: int | None
    is_held: bool = False
    pins: int = 0
    children: int = 0
    """Entries, arriving ones included, whose parent this is."""


@dataclass(slots=True, kw_only=True)
class HostTierCounters:
    """What happened since the start, for metrics."""

    blocks_stored: int = 0
    blocks_evicted: int = 0
    blocks_refused: int = 0
    """Offered, and not taken for want of room."""
    blocks_dropped: int = 0
    """Could not be read, or were found changed, and forgotten."""


class HostTier:
    """The slots of one position's host memory. `hash in tier`: the block is held.

    Between `reserve` and the `commit` or `abandon` of what it gave there is no other `reserve`.
    """

    def __init__(self, *, slots_total: int) -> None:
        self.slots_total = slots_total
        self.counters = HostTierCounters()
        self._entries: dict[int, _Entry] = {}
        self._leaves: OrderedDict[int, None] = OrderedDict()
        # Held, unpinned entries without children, the least recently used first.
        self._free = list(range(slots_total - 1, -1, -1))

    def __contains__(self, block_hash: object) -> bool:
        entry = self._entries.get(block_hash) if isinstance(block_hash, int) else None
        return entry is not None and entry.is_held

    @property
    def blocks_held(self) -> int:
        """Blocks that can be read."""
        return sum(entry.is_held for entry in self._entries.values())

    @property
    def slots_free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    def knows(self, block_hash: int) -> bool:
        """Whether the block is held or on its way here; it need not be stored again."""
        return block_hash in self._entries

    def reserve(self, links: Iterable[ChainLink], *, wanted: Container[int] = ()) -> dict[int, int]:
        """Return a slot for each block, by hash, that is not known yet, in the order given.

        Ends at the first that finds no room: what comes behind it in a chain would be worth
        nothing. A block whose parent is not known is left out for the same reason. `wanted`
        blocks are not evicted to make room.
        """
        slots: dict[int, int] = {}
        offered = list(links)
        for index, link in enumerate(offered):
            parent = self._parent_of(link)
            if self.knows(link.block_hash) or (link.parent_hash is not None and parent is None):
                continue
            if parent is not None:
                # Before room is made, or the parent itself may be what is evicted for its child.
                self._take_child(link.parent_hash, parent)
            slot = self._free_slot(wanted)
            if slot is None:
                if parent is not None:
                    self._lose_child(link.parent_hash)
                self.counters.blocks_refused += len(offered) - index
                break
            self._entries[link.block_hash] = _Entry(slot=slot, parent_hash=link.parent_hash)
            slots[link.block_hash] = slot
        return slots

    def commit(self, hashes: Iterable[int]) -> None:
        """Let blocks be found whose content every rank has."""
        for block_hash in hashes:
            entry = self._entries.get(block_hash)
            if entry is not None and not entry.is_held:
                entry.is_held = True
                self.counters.blocks_stored += 1
                self._note_leaf(block_hash, entry)

    def abandon(self, hashes: Iterable[int]) -> None:
        """Forget blocks that did not arrive; nobody writes to their slots any more."""
        # Children first: they came behind their parents.
        for block_hash in reversed(list(hashes)):
            entry = self._entries.get(block_hash)
            if entry is not None and not entry.is_held:
                self._forget(block_hash)

    def held_prefix(self, hashes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return (hash, slot) of the blocks, from the first, that are held without a gap."""
        found: list[tuple[int, int]] = []
        for block_hash in hashes:
            entry = self._entries.get(block_hash)
            if entry is None or not entry.is_held:
                break
            found.append((block_hash, entry.slot))
            if block_hash in self._leaves:
                self._leaves.move_to_end(block_hash)
        return tuple(found)

    def pin(self, hashes: Iterable[int]) -> None:
        """Keep held blocks while they are read."""
        for block_hash in hashes:
            require(block_hash in self, f"{block_hash:x} is pinned but not held")
            self._entries[block_hash].pins += 1
            self._leaves.pop(block_hash, None)

    def unpin(self, hashes: Iterable[int]) -> None:
        """End one `pin`; a block that was dropped meanwhile needs none."""
        for block_hash in hashes:
            entry = self._entries.get(block_hash)
            if entry is not None and entry.pins > 0:
                entry.pins -= 1
                self._note_leaf(block_hash, entry)

    def drop(self, hashes: Iterable[int]) -> None:
        """Forget blocks whose content cannot be had, and all that hang on them."""
        for block_hash in hashes:
            if block_hash in self._entries:
                self.counters.blocks_dropped += 1
                self._drop_with_children(block_hash)

    def check_invariants(self) -> None:
        """Raise InvariantViolation if slots, chains and leaves contradict one another."""
        used = [entry.slot for entry in self._entries.values()]
        require(sorted([*used, *self._free]) == list(range(self.slots_total)), "slots are amiss")
        children: dict[int, int] = {}
        for block_hash, entry in self._entries.items():
            if entry.parent_hash is not None:
                require(entry.parent_hash in self._entries, f"{block_hash:x} hangs in the air")
                children[entry.parent_hash] = children.get(entry.parent_hash, 0) + 1
        for block_hash, entry in self._entries.items():
            require(entry.children == children.get(block_hash, 0), "children are miscounted")
            is_leaf = entry.is_held and not entry.pins and not entry.children
            require((block_hash in self._leaves) == is_leaf, f"{block_hash:x} is a wrong leaf")

    def _parent_of(self, link: ChainLink) -> _Entry | None:
        return None if link.parent_hash is None else self._entries.get(link.parent_hash)

    def _free_slot(self, wanted: Container[int]) -> int | None:
        if not self._free:
            victim = next((leaf for leaf in self._leaves if leaf not in wanted), None)
            if victim is None:
                return None
            self._forget(victim)
            self.counters.blocks_evicted += 1
        return self._free.pop()

    def _take_child(self, parent_hash: int | None, parent: _Entry) -> None:
        assert parent_hash is not None
        parent.children += 1
        self._leaves.pop(parent_hash, None)

    def _lose_child(self, parent_hash: int | None) -> None:
        if parent_hash is None:
            return
        parent = self._entries.get(parent_hash)
        if parent is None:
            return
        parent.children -= 1
        self._note_leaf(parent_hash, parent)
        if parent_hash in self._leaves:
            # It is as old as the child that went: the whole chain goes before a newer one.
            self._leaves.move_to_end(parent_hash, last=False)

    def _note_leaf(self, block_hash: int, entry: _Entry) -> None:
        if entry.is_held and not entry.pins and not entry.children:
            self._leaves[block_hash] = None

    def _forget(self, block_hash: int) -> None:
        """Free the slot; the caller sees to it that nothing hangs on it or is about to."""
        entry = self._entries.pop(block_hash)
        self._leaves.pop(block_hash, None)
        self._free.append(entry.slot)
        self._lose_child(entry.parent_hash)

    def _drop_with_children(self, block_hash: int) -> None:
        children = [h for h, entry in self._entries.items() if entry.parent_hash == block_hash]
        for child in children:
            self._drop_with_children(child)
        self._forget(block_hash)

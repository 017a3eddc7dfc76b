"""Holds KV blocks for copies that are under way, out of this engine or into it; pure.

A hold is known by its ticket. Blocks that are copied out are *pinned*: their content stays although
their sequence ends. Blocks that are copied in are *reserved* for a prefix hash and *committed* when
their content has arrived and was verified; only then can a sequence match them. They stay until the
ticket is released, so that a session which follows its KV finds all of it.

    reserve -> empty, held --commit--> known by hash, held --release--> cached
                     |
                     +---------------- release --> free

Pinned and reserved blocks are read and written by others, so nothing but `release` frees them.
Committed ones are only kept for later: they are given up before a running sequence is preempted.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from libs.engine.block_pool import BlockPool
from libs.kernel.core import require


@dataclass(slots=True)
class _Hold:
    """One reference of the pool for each block."""

    pinned: list[int] = field(default_factory=list)
    arriving: dict[int, int] = field(default_factory=dict)
    """Block by hash: reserved and not committed."""
    committed: list[int] = field(default_factory=list)
    """Among them blocks that were known when their hash was to be reserved."""

    @property
    def block_ids(self) -> list[int]:
        return [*self.pinned, *self.committed, *self.arriving.values()]


class BlockHolds:
    """The holds on one pool; each ticket's blocks are given back together."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._holds: dict[str, _Hold] = {}

    @property
    def block_tables(self) -> Iterator[Sequence[int]]:
        """The blocks of each hold, which count as references of the pool."""
        return (hold.block_ids for hold in self._holds.values())

    @property
    def committed_tables(self) -> list[list[int]]:
        """The blocks of each hold that `give_up_committed` could let go."""
        return [hold.committed for hold in self._holds.values()]

    @property
    def is_any_firm(self) -> bool:
        """Whether blocks are held that only `release` can free."""
        return any(hold.pinned or hold.arriving for hold in self._holds.values())

    def pin(self, ticket: str, block_ids: Sequence[int]) -> None:
        """Hold blocks that are in use or cached; their content does not change."""
        self._pool.acquire(block_ids)
        self._hold(ticket).pinned += block_ids

    def reserve(self, ticket: str, hashes: Iterable[int], *, blocks_spare: int) -> dict[int, int]:
        """Return an empty block for each hash that is unknown here, in their order.

        Known ones are held as if they were committed, so that a prefix stays whole; those that
        another copy brings are left to it. Ends before fewer than `blocks_spare` stay free.
        """
        hold = self._hold(ticket)
        arriving = {known for other in self._holds.values() for known in other.arriving}
        reserved: dict[int, int] = {}
        for block_hash in hashes:
            known = self._pool.match([block_hash])
            if known:
                self._pool.acquire(known)
                hold.committed += known
            elif block_hash not in arriving and block_hash not in reserved:
                if not self._pool.can_allocate(1 + blocks_spare):
                    break
                reserved[block_hash] = self._pool.allocate(1)[0]
        hold.arriving |= reserved
        return reserved

    def commit(self, ticket: str, hashes: Iterable[int]) -> None:
        """Make reserved blocks known by their hashes; what is not reserved is ignored."""
        hold = self._holds.get(ticket)
        if hold is None:
            return
        for block_hash in hashes:
            block = hold.arriving.pop(block_hash, None)
            if block is not None:
                self._pool.publish(block, block_hash)
                hold.committed.append(block)

    def drop_reserved(self, ticket: str) -> None:
        """Free what the ticket has reserved and not committed; nobody writes to it any more."""
        hold = self._holds.get(ticket)
        if hold is not None:
            self._pool.release(list(hold.arriving.values()))
            hold.arriving = {}

    def give_up_committed(self) -> bool:
        """Let go of what the oldest ticket has committed; say whether there was any."""
        for hold in self._holds.values():
            if hold.committed:
                self._pool.release(hold.committed)
                hold.committed = []
                return True
        return False

    def release(self, ticket: str) -> None:
        """Give back what the ticket holds; an unknown one holds nothing."""
        hold = self._holds.pop(ticket, None)
        if hold is not None:
            self._pool.release(hold.block_ids)

    def check_invariants(self) -> None:
        """Raise if two copies write the same block, or a sequence can find an arriving one."""
        arriving = [block for hold in self._holds.values() for block in hold.arriving.values()]
        require(len(arriving) == len(set(arriving)), "two copies write the same block")
        require(not self._pool.are_any_known(arriving), "a block is known before it is committed")

    def _hold(self, ticket: str) -> _Hold:
        return self._holds.setdefault(ticket, _Hold())

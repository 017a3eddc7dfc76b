"""Owns the KV blocks of one engine: who uses which, and which hold a prefix worth keeping.

Every block is in exactly one of three states:

    free        holds nothing of value
    referenced  in the block table of one or more sequences, or held for a copy; never written by
                more than one
    cached      referenced by none, but its content is known by hash: reused on a match,
                evicted, least recently used first, when the free blocks run out
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain

from libs.kernel.core import require
from libs.kernel.errors import InvariantViolation


class BlockPool:
    """Reference-counted blocks with a prefix cache; free + cached + referenced == total."""

    def __init__(self, *, blocks_total: int, block_tokens: int) -> None:
        assert blocks_total > 0
        assert block_tokens > 0
        self.blocks_total = blocks_total
        self.block_tokens = block_tokens
        self._free = list(range(blocks_total - 1, -1, -1))
        self._references = [0] * blocks_total
        self._hashes: list[int | None] = [None] * blocks_total
        self._block_by_hash: OrderedDict[int, int] = OrderedDict()
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def blocks_free(self) -> int:
        """Blocks that `allocate` can give: free ones and cached ones that it may evict."""
        return len(self._free) + len(self._cached)

    def references(self, block: int) -> int:
        """Count the tables and holds that the block is in."""
        return self._references[block]

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-tokens // self.block_tokens)

    def can_allocate(self, blocks: int) -> bool:
        """Whether `allocate` may be called for this many blocks."""
        return blocks <= self.blocks_free

    def allocate(self, blocks: int) -> list[int]:
        """Give blocks with one reference each; their old content is forgotten."""
        require(self.can_allocate(blocks), f"{blocks} blocks asked of {self.blocks_free} free")
        return [self._take_one() for _ in range(blocks)]

    def match(self, hashes: Iterable[int]) -> list[int]:
        """Return the blocks of the longest known prefix, still without a reference."""
        blocks: list[int] = []
        for block_hash in hashes:
            block = self._block_by_hash.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def acquire(self, blocks: Sequence[int]) -> None:
        """Add a reference to blocks that `match` found."""
        for block in blocks:
            if self._references[block] == 0:
                require(block in self._cached, f"block {block} is acquired but holds nothing")
                del self._cached[block]
            self._references[block] += 1
            block_hash = self._hashes[block]
            if block_hash is not None:
                self._block_by_hash.move_to_end(block_hash)

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference each; a published block stays cached, the rest become free.

        The last block is dropped first, so that a prefix is evicted from its end.
        """
        for block in reversed(blocks):
            require(self._references[block] > 0, f"block {block} is released but not referenced")
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            if self._hashes[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def publish(self, block: int, block_hash: int) -> None:
        """Make a full, computed block findable; the first block of a hash stays the known one."""
        require(self._references[block] > 0, f"block {block} is published but not referenced")
        if block_hash in self._block_by_hash or self._hashes[block] is not None:
            return
        self._hashes[block] = block_hash
        self._block_by_hash[block_hash] = block

    def recent_hashes(self, limit: int) -> tuple[int, ...]:
        """Return the hashes of known blocks, most recently published or reused first."""
        newest_first = reversed(self._block_by_hash)
        return tuple(block_hash for block_hash, _ in zip(newest_first, range(limit), strict=False))

    def are_any_known(self, blocks: Iterable[int]) -> bool:
        """Whether any of the blocks can be found by a hash."""
        return any(self._hashes[block] is not None for block in blocks)

    def check_invariants(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Raise unless the block tables are exactly the references and every block has one state.

        Costs time linear in the pool.
        """
        expected = [0] * self.blocks_total
        for block in chain.from_iterable(block_tables):
            expected[block] += 1
        if self._references != expected:
            counts = enumerate(zip(self._references, expected, strict=True))
            wrong = [
                f"block {block}: {is_} for {due}" for block, (is_, due) in counts if is_ != due
            ]
            raise InvariantViolation(f"references differ from the tables: {', '.join(wrong)}")
        free, idle = set(self._free), {*self._free, *self._cached}
        require(len(free) == len(self._free), "a block is free twice")
        require(len(idle) == len(free) + len(self._cached), "a block is free and cached")
        require(not any(map(self._references.__getitem__, idle)), "an idle block is referenced")
        sizes = len(idle) + self.blocks_total - self._references.count(0)
        require(sizes == self.blocks_total, f"{sizes} blocks accounted of {self.blocks_total}")
        is_known = all(self._hashes[block] == known for known, block in self._block_by_hash.items())
        published = self.blocks_total - self._hashes.count(None)
        require(
            is_known and len(self._block_by_hash) == published,
            "the hash index disagrees with the blocks",
        )
        require(
            None not in map(self._hashes.__getitem__, self._cached), "a cached block has no hash"
        )
        require({None}.issuperset(map(self._hashes.__getitem__, free)), "a free block has a hash")

    def _take_one(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        self._references[block] = 1
        return block

    def _forget(self, block: int) -> None:
        block_hash = self._hashes[block]
        assert block_hash is not None
        self._hashes[block] = None
        del self._block_by_hash[block_hash]

"""Which KV blocks each sequence has: prefixes found, blocks taken, filled, named and given back."""

from collections.abc import Iterable

from libs.engine.block_holds import BlockHolds
from libs.engine.block_pool import BlockPool
from libs.engine.prefix_hashes import child_hash, root_hash
from libs.engine.scheduling.tracked_sequence import TrackedSequence


class SequenceBlocks:
    """One pool of blocks, the tables of the sequences that use it, and the holds of copies."""

    def __init__(self, *, blocks_total: int, block_tokens: int, enable_prefix_cache: bool) -> None:
        self.pool = BlockPool(blocks_total=blocks_total, block_tokens=block_tokens)
        self.holds = BlockHolds(self.pool)
        self.enable_prefix_cache = enable_prefix_cache

    def admit(self, sequence: TrackedSequence, *, blocks_spare: int) -> bool:
        """Give a waiting sequence cached blocks of its prefix and empty ones for all the rest, if
        `blocks_spare` stay free then; say whether it was done."""
        matched = self.acquire_prefix(sequence)
        blocks_missing = self.pool.blocks_for(len(sequence.token_ids)) - len(matched)
        if not self.pool.can_allocate(blocks_missing + blocks_spare):
            self.pool.release(matched)
            return False
        sequence.block_ids = matched + self.pool.allocate(blocks_missing)
        sequence.blocks_published = len(matched)
        sequence.tokens_computed = len(matched) * self.pool.block_tokens
        return True

    def acquire_prefix(self, sequence: TrackedSequence) -> list[int]:
        """Refer to the cached blocks of a waiting sequence's prefix, and return them."""
        matched = self.pool.match(self.matchable_hashes(sequence))
        self.pool.acquire(matched)
        return matched

    def has_room_for_next_token(self, sequence: TrackedSequence) -> bool:
        """Whether the sequence's blocks suffice for one more token."""
        return sequence.tokens_computed < len(sequence.block_ids) * self.pool.block_tokens

    def grow(self, sequence: TrackedSequence) -> None:
        """Give a running sequence one more block, which must be there."""
        sequence.block_ids += self.pool.allocate(1)

    def release(self, sequence: TrackedSequence) -> None:
        """Take all blocks of a sequence; what is full stays findable until it is needed."""
        self.pool.release(sequence.block_ids)
        sequence.block_ids = []
        sequence.blocks_published = 0
        sequence.tokens_computed = 0

    def publish_full(self, sequence: TrackedSequence) -> None:
        """Let other sequences find the blocks that the sequence has filled."""
        blocks = sequence.tokens_computed // self.pool.block_tokens
        if not self.enable_prefix_cache or blocks == sequence.blocks_published:
            return
        hashes = self.full_hashes(sequence)
        for index in range(sequence.blocks_published, len(hashes)):
            self.pool.publish(sequence.block_ids[index], hashes[index])
        sequence.blocks_published = len(hashes)

    def full_hashes(self, sequence: TrackedSequence) -> list[int]:
        """Hashes of the full, computed blocks."""
        return self._hashes(sequence, blocks=sequence.tokens_computed // self.pool.block_tokens)

    def matchable_hashes(self, sequence: TrackedSequence) -> list[int]:
        """Hashes of the full blocks before the last token, which is always computed anew because
        its logits are needed. None while a prompt is scored: all of its logits are."""
        if not self.enable_prefix_cache or sequence.is_prompt_scored:
            return []
        return self._hashes(
            sequence, blocks=(len(sequence.token_ids) - 1) // self.pool.block_tokens
        )

    def tokens_cached(self, sequence: TrackedSequence) -> int:
        """Count the tokens of a waiting sequence that need not be computed."""
        return len(self.pool.match(self.matchable_hashes(sequence))) * self.pool.block_tokens

    def unmatched_hashes(self, sequence: TrackedSequence) -> list[int]:
        """Hashes that `admit` would look for and not find."""
        hashes = self.matchable_hashes(sequence)
        return hashes[len(self.pool.match(hashes)) :]

    def check_invariants(self, running: Iterable[TrackedSequence]) -> None:
        """Raise InvariantViolation unless these tables and the holds are all references."""
        tables = [sequence.block_ids for sequence in running]
        self.pool.check_invariants([*tables, *self.holds.block_tables])
        self.holds.check_invariants()

    def _hashes(self, sequence: TrackedSequence, *, blocks: int) -> list[int]:
        size = self.pool.block_tokens
        hashes = sequence.block_hashes
        for index in range(len(hashes), blocks):
            parent = hashes[-1] if hashes else root_hash(sequence.request.cache_salt)
            hashes.append(child_hash(parent, sequence.token_ids[index * size : (index + 1) * size]))
        return hashes[:blocks]

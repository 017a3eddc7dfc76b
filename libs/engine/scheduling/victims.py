"""Which offline sequence makes room, and whether all of them together could.

    cost   tokens to compute again: computed ones, less the leading blocks that another sequence
           keeps alive or that can be copied back
    gain   blocks that nobody else uses

The least cost per block gained goes first, among equals the newest. One whose blocks are all in use
by others as a shared prefix gains nothing and goes last; only-online blocks are no gain at all.
"""

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from math import inf

from libs.engine.block_pool import BlockPool
from libs.engine.scheduling.coserve import VictimRule
from libs.engine.scheduling.sequence_blocks import SequenceBlocks
from libs.engine.scheduling.tracked_sequence import TrackedSequence


def blocks_evictable(pool: BlockPool, tables: Iterable[Sequence[int]]) -> int:
    """Count the blocks that were free if all these tables were given back."""
    return len(_used_by_none_else(pool, tables))


def choose_victim(
    blocks: SequenceBlocks,
    candidates: Sequence[TrackedSequence],
    *,
    rule: VictimRule,
    stored: Container[int],
) -> TrackedSequence | None:
    """Return the candidate that goes next; None if none holds a block that they alone use."""
    alone = _used_by_none_else(blocks.pool, (s.block_ids for s in candidates))
    useful = [s for s in candidates if not alone.isdisjoint(s.block_ids)]
    if not useful:
        return None
    if rule is VictimRule.NEWEST:
        return max(useful, key=lambda sequence: sequence.arrival)
    return min(
        useful, key=lambda sequence: (_cost_per_block(blocks, sequence, stored), -sequence.arrival)
    )


def tokens_to_recompute(
    blocks: SequenceBlocks, sequence: TrackedSequence, stored: Container[int]
) -> int:
    """Count the computed tokens of a running sequence that an eviction would lose."""
    pool = blocks.pool
    kept = 0
    hashes = blocks.full_hashes(sequence)
    for block, block_hash in zip(sequence.block_ids, hashes, strict=False):
        if pool.references(block) == 1 and block_hash not in stored:
            break
        kept += 1
    return sequence.tokens_computed - kept * pool.block_tokens


def _cost_per_block(
    blocks: SequenceBlocks, sequence: TrackedSequence, stored: Container[int]
) -> float:
    gain = sum(1 for block in sequence.block_ids if blocks.pool.references(block) == 1)
    return tokens_to_recompute(blocks, sequence, stored) / gain if gain else inf


def _used_by_none_else(pool: BlockPool, tables: Iterable[Sequence[int]]) -> set[int]:
    """Blocks that are in these tables and nowhere else; for membership and counting."""
    uses = Counter(block for table in tables for block in table)
    return {block for block, count in uses.items() if pool.references(block) == count}

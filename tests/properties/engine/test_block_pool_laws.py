"""Blocks are neither lost nor doubled, whatever is asked of the pool."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.engine.block_pool import BlockPool

BLOCKS = 7


class PoolMachine(RuleBasedStateMachine):
    """Holders of block tables come and go; the content of a block is the hash it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(blocks_total=BLOCKS, block_tokens=4)
        self.tables: list[list[int]] = []
        self.content: dict[int, int] = {}

    @rule(blocks=st.integers(0, BLOCKS + 2))
    def allocate(self, blocks: int) -> None:
        if self.pool.can_allocate(blocks):
            table = self.pool.allocate(blocks)
            held = {block for other in self.tables for block in other}
            assert not held & set(table), "a block that is in use was given away"
            for block in table:
                self.content.pop(block, None)
            self.tables.append(table)
        else:
            assert blocks > BLOCKS - len({b for table in self.tables for b in table})

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), block_hash=st.integers(1, 5))
    def publish(self, data: st.DataObject, block_hash: int) -> None:
        table = data.draw(st.sampled_from([table for table in self.tables if table]))
        block = data.draw(st.sampled_from(table))
        was_known = self.pool.match([block_hash]) != []
        self.pool.publish(block, block_hash)
        if not was_known and block not in self.content:
            self.content[block] = block_hash

    @rule(hashes=st.lists(st.integers(1, 6), max_size=4, unique=True))
    def share(self, hashes: list[int]) -> None:
        matched = self.pool.match(hashes)
        assert [self.content[block] for block in matched] == hashes[: len(matched)]
        self.pool.acquire(matched)
        self.tables.append(matched)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(index))

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        self.pool.check_invariants(self.tables)
        in_use = {block for table in self.tables for block in table}
        assert self.pool.blocks_free + len(in_use) == BLOCKS
        assert set(self.pool.recent_hashes(100)) == set(self.content.values())


TestBlockPool = PoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

"""Copies come and go beside sequences: no block is lost, shared in writing, or found too early."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.engine.block_holds import BlockHolds
from libs.engine.block_pool import BlockPool

BLOCKS = 6
TICKETS = ("a", "b", "c")


class HoldsMachine(RuleBasedStateMachine):
    """Block tables and copies compete for one pool; content is the hash that a block was given."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(blocks_total=BLOCKS, block_tokens=4)
        self.holds = BlockHolds(self.pool)
        self.tables: list[list[int]] = []
        self.arriving: dict[str, dict[int, int]] = {}
        self.pinned: dict[str, list[int]] = {}

    @rule(ticket=st.sampled_from(TICKETS), hashes=st.lists(st.integers(1, 9), max_size=5))
    def reserve(self, ticket: str, hashes: list[int]) -> None:
        reserved = self.holds.reserve(ticket, hashes, blocks_spare=len(self.tables))
        assert list(reserved) == sorted(reserved, key=hashes.index), "not prefix first"
        assert not any(self.pool.match([block_hash]) for block_hash in reserved)
        in_use = {block for table in self.tables for block in table}
        in_use |= {block for blocks in self.arriving.values() for block in blocks.values()}
        in_use |= {block for blocks in self.pinned.values() for block in blocks}
        assert not in_use & set(reserved.values()), "a block in use is to be overwritten"
        self.arriving.setdefault(ticket, {}).update(reserved)

    @precondition(lambda self: any(self.arriving.values()))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([t for t in TICKETS if self.arriving.get(t)]))
        block_hash = data.draw(st.sampled_from(sorted(self.arriving[ticket])))
        block = self.arriving[ticket].pop(block_hash)
        was_known = self.pool.match([block_hash])
        self.holds.commit(ticket, [block_hash, 99])
        assert self.pool.match([block_hash]) == (was_known or [block])

    @rule(ticket=st.sampled_from(TICKETS))
    def release(self, ticket: str) -> None:
        self.holds.release(ticket)
        self.arriving.pop(ticket, None)
        self.pinned.pop(ticket, None)

    @rule(blocks=st.integers(1, 3))
    def allocate(self, blocks: int) -> None:
        if self.pool.can_allocate(blocks):
            self.tables.append(self.pool.allocate(blocks))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), block_hash=st.integers(1, 9), is_published=st.booleans())
    def end(self, data: st.DataObject, block_hash: int, is_published: bool) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        if is_published:
            self.pool.publish(table[0], block_hash)
        self.pool.release(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), ticket=st.sampled_from(TICKETS))
    def pin(self, data: st.DataObject, ticket: str) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.holds.pin(ticket, table)
        self.pinned.setdefault(ticket, []).extend(table)

    @rule()
    def give_up_committed(self) -> None:
        free_before = self.pool.blocks_free
        was_any = self.holds.give_up_committed()
        assert self.pool.blocks_free >= free_before
        if not was_any:
            firm = {block for blocks in self.arriving.values() for block in blocks.values()}
            firm |= {block for blocks in self.pinned.values() for block in blocks}
            used = {block for table in self.tables for block in table}
            assert self.pool.blocks_free == BLOCKS - len(firm | used)

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        self.pool.check_invariants([*self.tables, *self.holds.block_tables])
        self.holds.check_invariants()
        assert self.holds.is_any_firm == (any(self.arriving.values()) or any(self.pinned.values()))

    def teardown(self) -> None:
        for ticket in TICKETS:
            self.holds.release(ticket)
        for table in self.tables:
            self.pool.release(table)
        assert self.pool.blocks_free == BLOCKS


TestBlockHolds = HoldsMachine.TestCase
TestBlockHolds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

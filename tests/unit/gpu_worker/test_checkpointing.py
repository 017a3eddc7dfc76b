"""Checkpoints of offline KV in host memory: what is copied, when, and what it spares."""

import pytest

from libs.engine.prefix_hashes import prefix_block_hashes
from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from services.gpu_worker.commands import LoadBlocks, StoreBlocks
from tests.checkpoint_world import (
    BLOCK_TOKENS,
    OFFLINE,
    ONLINE,
    SLOW_LINK,
    CheckpointWorld,
    WrongContent,
)

PROMPT = tuple(range(1, 14))
"""Three full blocks and one token."""


def prompt_of(seed: int, tokens: int = 13) -> tuple[int, ...]:
    return tuple(seed * 20 + index for index in range(tokens))


def a_worker_whose_sequence_is_stored(**changes: object) -> CheckpointWorld:
    """Offline sequence `off` runs, and its full blocks are held in host memory."""
    world = CheckpointWorld(**changes)  # type: ignore[arg-type]
    world.start("off", prompt=PROMPT, tokens=12)
    world.finish_step()
    world.finish_copies()
    return world


def evict(world: CheckpointWorld, *, name: str = "on", blocks: int = 15) -> None:
    """Let an online session arrive that needs nearly all blocks; the step in flight ends first."""
    prompt = tuple(400 + index % 90 for index in range(blocks * BLOCK_TOKENS - 2))
    world.start(name, prompt=prompt, tokens=2, priority=ONLINE)
    if world.step is None:
        world.finish_copies()
    world.finish_step()


def test_full_blocks_of_offline_sequences_are_stored_once_their_step_is_accounted() -> None:
    world = CheckpointWorld()
    world.start("off", prompt=PROMPT)
    assert world.copies == []
    world.finish_step()
    (copying,) = world.copies
    assert isinstance(copying.command, StoreBlocks)
    assert len(copying.command.pairs) == 3
    hashes = prefix_block_hashes(PROMPT, block_tokens=BLOCK_TOKENS, salt="")
    assert not any(block_hash in world.tier for block_hash in hashes)
    world.finish_copy()
    assert all(block_hash in world.tier for block_hash in hashes)


def test_online_sequences_are_not_stored() -> None:
    world = CheckpointWorld()
    world.start("on", prompt=PROMPT, priority=ONLINE)
    world.run(3)
    assert world.counters.blocks_stored == 0


def test_a_step_that_yielded_stores_nothing_of_what_it_wrote() -> None:
    world = CheckpointWorld(coserve=CoserveOptions(policy=Coserve.CONSERVE))
    world.start("off", prompt=PROMPT)
    world.finish_step(is_yielded=True)
    assert world.copies == []
    world.run_to_the_end()


def test_evicting_what_is_stored_computes_no_token_of_it_again() -> None:
    world = a_worker_whose_sequence_is_stored()
    evict(world)
    assert "off#1" in world.scheduler.waiting_offline_ids()
    before = world.tokens_computed
    world.run_to_the_end()
    assert world.is_finished("off")
    # What follows the last full block, and what was not generated yet.
    assert world.counters.blocks_loaded >= 2
    assert world.tokens_computed - before < 60 + 12 + BLOCK_TOKENS


def test_without_checkpoints_all_of_it_is_computed_again() -> None:
    """The negative control of the test above."""
    world = a_worker_whose_sequence_is_stored(policy="off", host_blocks=0)
    evict(world)
    before = world.tokens_computed
    world.run_to_the_end()
    assert world.tokens_computed - before >= 60 + 12 + BLOCK_TOKENS


def test_below_the_crossover_it_is_computed_again_though_it_is_stored() -> None:
    world = a_worker_whose_sequence_is_stored(link=SLOW_LINK, copy_share_max=1.0)
    world.core.checkpointing.current.link = SLOW_LINK  # type: ignore[union-attr]
    evict(world)
    world.run_to_the_end()
    assert world.counters.blocks_loaded == 0
    assert world.is_finished("off")


def test_a_sequence_that_is_loaded_is_held_back_and_others_go_past_it() -> None:
    world = a_worker_whose_sequence_is_stored()
    evict(world)
    world.run(1, with_copies=False)
    while not any(isinstance(each.command, LoadBlocks) for each in world.copies):
        world.finish_step()
    world.start("later", prompt=prompt_of(3), tokens=2)
    while world.step is not None:
        world.finish_step()
    assert world.is_finished("later")
    assert not world.is_finished("off")
    world.run_to_the_end()
    assert world.is_finished("off")


# ------------------------------------------------------------------ hazards seen elsewhere


def test_stores_in_flight_at_preemption_keep_their_blocks_until_they_end() -> None:
    world = CheckpointWorld()
    world.start("off", prompt=PROMPT, tokens=12)
    world.finish_step()
    assert len(world.copies) == 1
    evict(world, blocks=13)
    assert "off#1" in world.scheduler.waiting_offline_ids()
    world.finish_copies()
    world.run_to_the_end()
    assert world.is_finished("off")


def test_a_store_without_a_pin_would_be_seen() -> None:
    """The negative control of the test above: the world notices what is read too late."""
    world = CheckpointWorld()
    world.start("off", prompt=PROMPT, tokens=12)
    world.finish_step()
    (copying,) = world.copies
    world.scheduler.release_blocks(copying.command.op_id)
    evict(world)
    world.finish_step()
    with pytest.raises(WrongContent):
        world.finish_copies()


def test_a_preempted_sequence_is_admitted_again_and_preempted_again_without_end() -> None:
    world = a_worker_whose_sequence_is_stored()
    for index in range(6):
        evict(world, name=f"on-{index}")
        world.run(2)
    world.run_to_the_end()
    assert world.is_finished("off")


def test_two_sequences_that_share_blocks_store_them_once() -> None:
    world = CheckpointWorld()
    world.start("a", prompt=PROMPT)
    world.start("b", prompt=PROMPT)
    world.finish_step()
    stored = [pair for each in world.copies for pair in each.command.pairs]
    assert len({slot for _, slot in stored}) == len(stored) == 3
    world.run_to_the_end()
    hashes = prefix_block_hashes(PROMPT, block_tokens=BLOCK_TOKENS, salt="")
    assert all(block_hash in world.tier for block_hash in hashes)


def test_what_is_not_copied_at_eviction_is_flushed_while_the_device_still_has_it() -> None:
    world = CheckpointWorld(policy="lazy", step_tokens_max=8)
    world.start("off", prompt=prompt_of(1, 21), tokens=12)
    while world.tokens_computed < 21:
        world.finish_step()
    assert world.copies == [], "there is room enough: lazy waits"
    evict(world, blocks=12)
    world.run_to_the_end()
    assert world.counters.blocks_flushed > 0
    assert world.is_finished("off")


def test_sequences_that_were_evicted_return_in_their_order() -> None:
    world = CheckpointWorld(blocks_total=24)
    for index in range(3):
        world.start(f"off-{index}", prompt=prompt_of(index), tokens=6)
    world.run(2)
    evict(world, blocks=22)
    finished: list[str] = []
    while world.step is not None or world.copies:
        world.finish_copies()
        world.finish_step()
        finished += [
            name for name in world.starts if world.is_finished(name) and name not in finished
        ]
    assert [name for name in finished if name.startswith("off")] == ["off-0", "off-1", "off-2"]


def test_room_is_made_at_the_ends_of_chains_that_nobody_waits_for() -> None:
    world = a_worker_whose_sequence_is_stored(host_blocks=5)
    evict(world)
    hashes = prefix_block_hashes(PROMPT, block_tokens=BLOCK_TOKENS, salt="")
    world.start("other", prompt=prompt_of(7, 9), tokens=4)
    world.run_to_the_end()
    assert world.counters.blocks_loaded >= 3
    assert world.is_finished("off")
    assert world.is_finished("other")
    held = [block_hash in world.tier for block_hash in hashes]
    assert held == sorted(held, reverse=True), "a chain has a hole"


def test_the_last_block_of_a_finishing_sequence_holds_nothing_up() -> None:
    world = CheckpointWorld()
    world.start("off", prompt=PROMPT, tokens=3 + 1)
    while not world.is_finished("off"):
        world.finish_step()
    world.finish_copies()
    assert not world.scheduler.is_copying
    assert world.scheduler.load().blocks_free == world.blocks_total


def test_a_session_that_ends_while_it_is_copied_leaves_nothing_behind() -> None:
    world = CheckpointWorld()
    world.start("off", prompt=PROMPT, tokens=12)
    world.finish_step()
    world.end("off")
    world.finish_copies()
    world.run_to_the_end()
    assert world.scheduler.load().blocks_free == world.blocks_total


# ------------------------------------------------------------------ failures


def test_a_store_that_fails_is_tried_again_and_nothing_of_it_is_found() -> None:
    world = CheckpointWorld()
    world.start("off", prompt=PROMPT, tokens=12)
    world.finish_step()
    world.finish_copy(fails=True)
    assert world.tier.blocks_held == 0
    world.run(1)
    world.finish_copies()
    assert world.tier.blocks_held >= 3


def test_a_load_that_fails_lets_the_sequence_go_and_is_computed_again() -> None:
    world = a_worker_whose_sequence_is_stored()
    evict(world)
    while not any(isinstance(each.command, LoadBlocks) for each in world.copies):
        world.finish_step()
    world.finish_copy(fails=True)
    world.run_to_the_end()
    assert world.is_finished("off")
    assert world.counters.copies_failed == 1


def test_a_block_that_changed_in_host_memory_is_refused_and_computed_again() -> None:
    world = a_worker_whose_sequence_is_stored()
    evict(world)
    for block in world.host:
        block[0] = -2
    world.run_to_the_end()
    assert world.counters.blocks_corrupt > 0
    assert world.is_finished("off")


def test_copies_take_no_more_than_their_share_of_the_time() -> None:
    world = CheckpointWorld(copy_share_max=0.03)
    world.start("off", prompt=PROMPT, tokens=40)
    kv = world.core.checkpointing.current
    assert kv is not None
    world.finish_step()
    world.finish_copies()
    # Some copy took very long; until steps have earned that much nothing is copied.
    kv.pace.copy_ended(10_000_000_000)
    stored = world.counters.blocks_stored
    world.run(12)
    assert world.counters.blocks_stored == stored


def test_the_share_of_offline_kv_that_is_evicted_for_nothing_is_known() -> None:
    world = a_worker_whose_sequence_is_stored()
    blocks = world.scheduler.offline_blocks()
    assert (blocks.blocks_stored, blocks.blocks_computed) == (3, 4)


@pytest.mark.parametrize("priority", [OFFLINE, ONLINE])
def test_without_room_on_the_host_everything_works_as_before(priority: int) -> None:
    world = CheckpointWorld(host_blocks=0)
    world.start("s", prompt=PROMPT, priority=priority)
    world.run_to_the_end()
    assert world.is_finished("s")

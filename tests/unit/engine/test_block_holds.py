"""Blocks held for copies: found only when they have come, kept until released, never in the way."""

import pytest

from libs.engine.prefix_hashes import prefix_block_hashes
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.steps import SampledToken, StepPlan, StepResult

PROMPT = tuple(range(1, 12))
HASHES = prefix_block_hashes(PROMPT, block_tokens=4, salt="")


def a_scheduler(*, blocks: int = 8, enable_prefix_cache: bool = True) -> Scheduler:
    return Scheduler(
        SchedulerOptions(
            step_tokens_max=64,
            sequences_max=4,
            block_tokens=4,
            blocks_total=blocks,
            context_tokens_max=4 * blocks,
            eos_token_ids=frozenset(),
            enable_prefix_cache=enable_prefix_cache,
        )
    )


def a_request(name: str, prompt: tuple[int, ...] = PROMPT, *, tokens: int = 9) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=name,
        prompt_token_ids=prompt,
        sampling=SamplingOptions(),
        stop=StopOptions(max_tokens=tokens),
    )


def step(scheduler: Scheduler) -> StepPlan | None:
    plan = scheduler.schedule(now_ns=0)
    if plan is not None:
        sampled = tuple(
            SampledToken(
                sequence_id=entry.sequence_id,
                token_id=7,
                text="",
                text_if_last="",
                is_stop_matched=False,
            )
            for entry in plan.entries
            if entry.is_sampling
        )
        scheduler.account(StepResult(step_id=plan.step_id, sampled=sampled), now_ns=0)
    scheduler.check_invariants()
    return plan


def start_of(plan: StepPlan | None, name: str) -> int:
    assert plan is not None
    return next(entry.start_position for entry in plan.entries if entry.sequence_id == name)


def test_full_blocks_are_those_that_are_computed_whole() -> None:
    scheduler = a_scheduler()
    scheduler.add(a_request("s"), now_ns=0)
    assert scheduler.full_blocks("s") == ()
    plan = scheduler.schedule(now_ns=0)
    assert plan is not None
    assert scheduler.full_blocks("s") == (), "a step in flight has written nothing yet"
    sampled = SampledToken(
        sequence_id="s", token_id=7, text="", text_if_last="", is_stop_matched=False
    )
    scheduler.account(StepResult(step_id=plan.step_id, sampled=(sampled,)), now_ns=0)
    blocks = scheduler.full_blocks("s")
    assert [block_hash for block_hash, _ in blocks] == HASHES
    assert [block for _, block in blocks] == list(plan.entries[0].block_table[:2])


def test_imported_blocks_are_found_once_they_are_committed() -> None:
    scheduler = a_scheduler()
    reserved = scheduler.reserve_imports("in", HASHES)
    assert list(reserved) == HASHES
    scheduler.add(a_request("early"), now_ns=0)
    assert start_of(step(scheduler), "early") == 0
    scheduler = a_scheduler()
    reserved = scheduler.reserve_imports("in", HASHES)
    scheduler.commit_imports("in", HASHES[:1])
    scheduler.commit_imports("in", HASHES[1:])
    scheduler.add(a_request("s"), now_ns=0)
    plan = scheduler.schedule(now_ns=0)
    assert start_of(plan, "s") == 8
    assert plan is not None
    assert plan.entries[0].block_table[:2] == tuple(reserved.values())


def test_blocks_that_never_came_are_free_again() -> None:
    scheduler = a_scheduler()
    scheduler.reserve_imports("in", HASHES)
    scheduler.commit_imports("in", HASHES[:1])
    assert scheduler.load().blocks_free == 6
    scheduler.release_blocks("in")
    scheduler.check_invariants()
    assert scheduler.load().blocks_free == 8
    assert scheduler.prefix_hashes(10) == (HASHES[0],)


def test_what_comes_after_the_release_is_ignored() -> None:
    scheduler = a_scheduler()
    scheduler.reserve_imports("in", HASHES)
    scheduler.release_blocks("in")
    scheduler.commit_imports("in", HASHES)
    scheduler.release_blocks("in")
    scheduler.check_invariants()
    assert scheduler.prefix_hashes(10) == ()


def test_a_known_block_is_not_copied_again_and_stays_with_the_rest() -> None:
    scheduler = a_scheduler(blocks=4)
    scheduler.add(a_request("first", PROMPT[:5], tokens=1), now_ns=0)
    step(scheduler)
    assert list(scheduler.reserve_imports("in", HASHES)) == HASHES[1:]
    scheduler.check_invariants()
    assert scheduler.load().blocks_free == 2


def test_a_block_on_its_way_is_left_to_the_copy_that_brings_it() -> None:
    scheduler = a_scheduler()
    scheduler.reserve_imports("one", HASHES[:1])
    assert list(scheduler.reserve_imports("two", HASHES)) == HASHES[1:]
    assert scheduler.reserve_imports("one", HASHES[:1]) == {}
    scheduler.check_invariants()


def test_as_many_as_fit_are_reserved_from_the_first_on_and_nobody_is_preempted() -> None:
    scheduler = a_scheduler(blocks=5)
    scheduler.add(a_request("running", tuple(range(50, 56))), now_ns=0)
    step(scheduler)
    many = prefix_block_hashes(tuple(range(1, 30)), block_tokens=4, salt="")
    reserved = scheduler.reserve_imports("in", many)
    assert list(reserved) == many[:2], "one block stays for the sequence that runs"
    assert start_of(step(scheduler), "running") == 6


def test_pinned_blocks_outlive_their_sequence_and_keep_their_content() -> None:
    scheduler = a_scheduler(blocks=4)
    scheduler.add(a_request("s", tokens=1), now_ns=0)
    step(scheduler)
    scheduler.add(a_request("t", tokens=2), now_ns=0)
    step(scheduler)
    pinned = [block for _, block in scheduler.full_blocks("t")]
    scheduler.pin_blocks("out", pinned)
    scheduler.abort("t")
    scheduler.add(a_request("other", tuple(range(60, 66)), tokens=1), now_ns=0)
    plan = step(scheduler)
    assert plan is not None
    assert not set(pinned) & set(plan.entries[0].block_table)
    scheduler.release_blocks("out")
    scheduler.check_invariants()
    assert scheduler.load().blocks_free == 4


def test_committed_blocks_are_given_up_before_a_running_sequence_is_preempted() -> None:
    scheduler = a_scheduler(blocks=4)
    scheduler.add(a_request("running", (50, 51, 52)), now_ns=0)
    step(scheduler)
    scheduler.reserve_imports("in", HASHES)
    scheduler.commit_imports("in", HASHES)
    positions = [start_of(step(scheduler), "running") for _ in range(8)]
    assert positions == list(range(3, 11)), "it was preempted"
    scheduler.release_blocks("in")
    scheduler.check_invariants()


def test_nothing_is_planned_while_copies_hold_every_block_and_all_goes_on_after_them() -> None:
    scheduler = a_scheduler(blocks=3)
    scheduler.reserve_imports("in", [1, 2, 3])
    scheduler.add(a_request("s", (50, 51, 52)), now_ns=0)
    assert scheduler.schedule(now_ns=0) is None
    scheduler.check_invariants()
    scheduler.release_blocks("in")
    assert start_of(step(scheduler), "s") == 0


def test_without_a_prefix_cache_nothing_is_imported() -> None:
    scheduler = a_scheduler(enable_prefix_cache=False)
    assert scheduler.reserve_imports("in", HASHES) == {}
    scheduler.add(a_request("s"), now_ns=0)
    step(scheduler)
    assert [block_hash for block_hash, _ in scheduler.full_blocks("s")] == HASHES


def test_a_free_block_cannot_be_pinned() -> None:
    with pytest.raises(AssertionError):
        a_scheduler().pin_blocks("out", [0])

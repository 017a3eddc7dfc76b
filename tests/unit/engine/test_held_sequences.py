"""Sequences that wait for their KV to be brought here, and what is known of stored blocks."""

from collections.abc import Callable

import pytest

from libs.engine.requests import SequenceRequest
from libs.engine.scheduler import OfflineBlocks, Scheduler, SchedulerOptions, StepResult
from libs.engine.simulated_runner import SimulatedRunner
from libs.engine.steps import StepPlan

RequestBuilder = Callable[..., SequenceRequest]
PROMPT = tuple(range(20, 33))


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(
        SchedulerOptions(
            step_tokens_max=16,
            sequences_max=4,
            block_tokens=4,
            blocks_total=16,
            context_tokens_max=64,
            eos_token_ids=frozenset(),
        )
    )


@pytest.fixture
def run() -> Callable[[StepPlan | None], StepResult]:
    runner = SimulatedRunner(vocabulary_size=100, eos_token_ids=frozenset())

    def run_plan(plan: StepPlan | None) -> StepResult:
        assert plan is not None
        return runner.run(plan)

    return run_plan


def test_a_sequence_that_is_held_back_lets_others_go_first(
    scheduler: Scheduler, a_request: RequestBuilder
) -> None:
    scheduler.add(a_request("held"), now_ns=0)
    scheduler.add(a_request("other"), now_ns=0)
    assert scheduler.hold_back("held")
    plan = scheduler.schedule(now_ns=0)
    assert plan is not None
    assert [entry.sequence_id for entry in plan.entries] == ["other"]


def test_nothing_is_planned_while_all_are_held_back_and_all_is_after_they_are_let_go(
    scheduler: Scheduler, a_request: RequestBuilder
) -> None:
    scheduler.add(a_request("s"), now_ns=0)
    scheduler.hold_back("s")
    assert scheduler.schedule(now_ns=0) is None
    assert scheduler.may_rest
    scheduler.let_go("s")
    assert not scheduler.may_rest
    assert scheduler.schedule(now_ns=0) is not None


def test_a_running_sequence_is_not_held_back(
    scheduler: Scheduler, a_request: RequestBuilder
) -> None:
    scheduler.add(a_request("s"), now_ns=0)
    scheduler.schedule(now_ns=0)
    assert not scheduler.hold_back("s")
    assert not scheduler.hold_back("stranger")
    scheduler.let_go("stranger")


def test_wanted_hashes_go_on_where_the_pool_ends(
    scheduler: Scheduler,
    a_request: RequestBuilder,
    run: Callable[[StepPlan | None], StepResult],
) -> None:
    scheduler.add(a_request("first", PROMPT[:9], max_tokens=1), now_ns=0)
    scheduler.account(run(scheduler.schedule(now_ns=0)), now_ns=0)
    scheduler.add(a_request("second", PROMPT), now_ns=0)
    wanted = scheduler.wanted_hashes("second")
    assert len(wanted) == 1, "two of the three full blocks before the last token are cached"
    reserved = scheduler.reserve_imports("ticket", wanted)
    assert tuple(reserved) == wanted
    scheduler.commit_imports("ticket", wanted)
    scheduler.release_blocks("ticket")
    assert scheduler.wanted_hashes("second") == ()
    plan = scheduler.schedule(now_ns=0)
    assert plan is not None
    assert plan.entries[0].start_position == 12
    assert scheduler.wanted_hashes("second") == (), "a running sequence wants nothing"


def test_offline_sequences_wait_in_the_order_of_service(
    scheduler: Scheduler, a_request: RequestBuilder
) -> None:
    scheduler.add(a_request("late", priority=-20), now_ns=0)
    scheduler.add(a_request("online"), now_ns=0)
    scheduler.add(a_request("early", priority=-10), now_ns=0)
    scheduler.hold_back("early")
    assert scheduler.waiting_offline_ids() == ("early", "late")


def test_stored_blocks_are_counted_among_those_of_running_offline_sequences(
    scheduler: Scheduler,
    a_request: RequestBuilder,
    run: Callable[[StepPlan | None], StepResult],
) -> None:
    scheduler.add(a_request("offline", PROMPT, priority=-1), now_ns=0)
    scheduler.account(run(scheduler.schedule(now_ns=0)), now_ns=0)
    assert scheduler.offline_blocks() == OfflineBlocks(blocks_computed=4, blocks_stored=0)
    scheduler.set_stored({scheduler.full_blocks("offline")[0][0]})
    assert scheduler.offline_blocks() == OfflineBlocks(blocks_computed=4, blocks_stored=1)

"""Which blocks a scheduler still has the content of, for copies that come late."""

from collections.abc import Callable

from libs.engine.prefix_hashes import prefix_block_hashes
from libs.engine.requests import SequenceRequest
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.simulated_runner import SimulatedRunner

PROMPT = tuple(range(1, 14))
HASHES = prefix_block_hashes(PROMPT, block_tokens=4, salt="")


def a_scheduler() -> Scheduler:
    return Scheduler(
        SchedulerOptions(
            step_tokens_max=64,
            sequences_max=8,
            block_tokens=4,
            blocks_total=8,
            context_tokens_max=32,
            eos_token_ids=frozenset(),
        )
    )


def a_runner() -> SimulatedRunner:
    return SimulatedRunner(vocabulary_size=50, eos_token_ids=frozenset())


def step(scheduler: Scheduler, runner: SimulatedRunner) -> None:
    plan = scheduler.schedule(now_ns=0)
    assert plan is not None
    scheduler.account(runner.run(plan), now_ns=0)


def test_blocks_are_found_while_in_use_and_after_their_sequence_until_overwritten(
    a_request: Callable[..., SequenceRequest],
) -> None:
    scheduler, runner = a_scheduler(), a_runner()
    scheduler.add(a_request("s", PROMPT, max_tokens=2), now_ns=0)
    assert scheduler.find_blocks(HASHES) == ()
    step(scheduler, runner)
    in_use = scheduler.find_blocks(HASHES)
    assert in_use == scheduler.full_blocks("s")
    step(scheduler, runner)
    assert scheduler.find_blocks(HASHES) == in_use
    scheduler.pin_blocks("ticket", [in_use[0][1]])
    scheduler.add(a_request("t", tuple(range(20, 46)), max_tokens=1), now_ns=0)
    step(scheduler, runner)
    assert scheduler.find_blocks(HASHES) == in_use[:1]


def test_unknown_hashes_are_left_out(a_request: Callable[..., SequenceRequest]) -> None:
    scheduler, runner = a_scheduler(), a_runner()
    scheduler.add(a_request("s", PROMPT, max_tokens=2), now_ns=0)
    step(scheduler, runner)
    found = scheduler.find_blocks([12345, *HASHES[1:]])
    assert [block_hash for block_hash, _ in found] == HASHES[1:]

"""Whatever ends when, fails, yields or goes away: no step ever attends to KV of other tokens, every
answer is the undisturbed one, and nothing is held for nobody in the end."""

from random import Random

import pytest

from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from services.gpu_worker.checkpoint_options import CheckpointPolicy
from tests.checkpoint_world import OFFLINE, ONLINE, CheckpointWorld

EVENTS = 300
SHARED = tuple(range(1, 10))
"""Prefix of many prompts."""


def a_prompt(rng: Random) -> tuple[int, ...]:
    own = tuple(rng.randrange(1, 100) for _ in range(rng.randrange(1, 19)))
    return SHARED + own if rng.random() < 0.4 else own


def a_disturbed_world(
    seed: int, policy: CheckpointPolicy = "eager", coserve: Coserve = Coserve.CONSERVE
) -> CheckpointWorld:
    """Let anything happen for a while, then let all end that was begun."""
    rng = Random(f"{seed}/{policy}/{coserve}")
    world = CheckpointWorld(
        policy=policy,
        coserve=CoserveOptions(policy=coserve),
        blocks_total=rng.choice([11, 12, 16]),
        host_blocks=rng.choice([3, 16, 64]),
    )
    for index in range(EVENTS):
        if rng.random() < 0.2:
            world.start(
                f"r{index}",
                prompt=a_prompt(rng),
                tokens=rng.randrange(1, 12),
                priority=ONLINE if rng.random() < 0.3 else OFFLINE,
            )
        elif world.starts and rng.random() < 0.02:
            world.end(rng.choice(sorted(world.starts)))
        world.disturb(rng)
    world.run_to_the_end()
    return world


@pytest.mark.parametrize("coserve", [Coserve.TIDESERVE, Coserve.CONSERVE])
@pytest.mark.parametrize("policy", ["eager", "lazy"])
@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_steps_copies_and_failures_changes_no_answer(
    seed: int, policy: CheckpointPolicy, coserve: Coserve
) -> None:
    world = a_disturbed_world(seed, policy, coserve)
    assert not world.scheduler.is_copying
    assert world.scheduler.load().blocks_free == world.blocks_total


def test_these_runs_meet_all_that_they_are_about() -> None:
    worlds = [a_disturbed_world(seed) for seed in range(8)]
    counters = [world.counters for world in worlds]
    assert sum(each.blocks_loaded for each in counters) > 10
    assert sum(each.blocks_corrupt for each in counters) > 0
    assert sum(each.copies_failed for each in counters) > 5
    assert sum(world.steps_yielded for world in worlds) > 20
    assert sum(world.tier.counters.blocks_evicted for world in worlds) > 5
    assert sum(world.tier.counters.blocks_refused for world in worlds) > 5

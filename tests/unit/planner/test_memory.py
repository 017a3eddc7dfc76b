"""Memory: the planner reckons as its workers do, and says what is missing."""

from pathlib import Path

import pytest

from libs.contracts.reports import MemoryRule
from libs.engine.model_config import read_model_config
from libs.engine.parallel.memory_needs import ReplicaMemory
from tests.planner_world import PAIR, PlannerWorld, a_world_with

MODEL = read_model_config(Path(__file__).parents[3] / "models" / "tide-tiny")
PACKED = MemoryRule(element_bytes=4, packed_copies=1)


def a_fleet(*, memory_bytes: int, rules: tuple[MemoryRule, MemoryRule]) -> PlannerWorld:
    world = a_world_with(cut=MODEL)
    for worker_id, rule in zip(("a", "b"), rules, strict=True):
        world.add_worker(worker_id, memory_bytes=memory_bytes, memory_rule=rule)
    world.run(seconds=3)
    return world


def bytes_needed(rule: MemoryRule) -> int:
    memory = ReplicaMemory(config=MODEL, rule=rule, block_tokens=16, context_tokens_max=2048)
    needed = memory.bytes_needed(PAIR, tokens=0)
    assert needed is not None
    return needed


@pytest.mark.parametrize("bytes_short", [0, 1])
def test_exactly_what_workers_accept_is_placed_and_else_the_report_says_why(
    bytes_short: int,
) -> None:
    memory_bytes = bytes_needed(PACKED) - bytes_short
    world = a_fleet(memory_bytes=memory_bytes, rules=(PACKED, PACKED))
    assert bool(world.placement.replicas) is (bytes_short == 0)
    reason = world.planners["p1"].core.why_no_plan
    assert ("the best cut needs 0.0 MiB more on each" in reason) is (bytes_short == 1)


def test_copies_that_only_a_worker_knows_of_are_reckoned_with() -> None:
    plain = MemoryRule(element_bytes=4)
    enough_if_held_once = bytes_needed(plain)
    assert a_fleet(memory_bytes=enough_if_held_once, rules=(plain, plain)).placement.replicas
    assert not a_fleet(memory_bytes=enough_if_held_once, rules=(PACKED, PACKED)).placement.replicas


def test_the_worker_that_needs_most_speaks_for_all() -> None:
    world = a_fleet(memory_bytes=2**30, rules=(MemoryRule(element_bytes=4), PACKED))
    memory = world.planners["p1"].core.fleet.replica_memory
    assert memory is not None
    assert memory.rule == PACKED

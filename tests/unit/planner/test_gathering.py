"""The first placement waits for the nodes that start together, and for nobody else."""

from tests.planner_world import PlannerWorld


def a_start_of(nodes: int) -> PlannerWorld:
    """A planner that expects so many nodes, two of which are there."""
    world = PlannerWorld()
    world.add_planner("p", nodes_expected=nodes)
    world.run(seconds=2)
    for worker_id in "ab":
        world.add_worker(worker_id)
    world.run(seconds=4)
    return world


def placements(world: PlannerWorld) -> int:
    """How many were committed that place anything."""
    return sum(bool(placement.replicas) for placement in world.history)


def test_workers_that_come_apart_get_one_placement() -> None:
    world = a_start_of(4)
    assert placements(world) == 0
    world.add_worker("c")
    world.run(seconds=4)
    assert placements(world) == 0
    world.add_worker("d")
    world.run(seconds=3)
    assert placements(world) == 1
    assert sorted(w for ids in world.shapes().values() for w in ids) == ["a", "b", "c", "d"]


def test_without_an_expectation_the_first_two_are_placed_at_once() -> None:
    assert placements(a_start_of(0)) == 1


def test_who_never_comes_is_not_waited_for_longer_than_the_bound() -> None:
    world = a_start_of(4)
    world.run(seconds=15)
    assert placements(world) == 0
    world.run(seconds=3)
    assert placements(world) == 1


def test_what_happens_after_the_first_placement_waits_for_nobody() -> None:
    world = a_start_of(2)
    assert placements(world) == 1
    world.notice("node-a")
    world.add_worker("c")
    world.run(seconds=1)
    assert placements(world) == 2
    assert sorted(w for ids in world.shapes().values() for w in ids) == ["b", "c"]

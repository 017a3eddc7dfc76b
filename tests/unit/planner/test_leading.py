"""One planner leads, whoever dies, freezes or wakes, and whatever the store does."""

from tests.planner_world import PlannerWorld, a_world_with


def planners_with(*worker_ids: str, planners: int) -> PlannerWorld:
    world = PlannerWorld()
    for worker_id in worker_ids:
        world.add_worker(worker_id)
    for number in range(1, planners + 1):
        world.add_planner(f"p{number}")
    world.run(seconds=2)
    world.migrate()
    world.run(seconds=1)
    return world


def test_of_planners_that_start_together_one_leads() -> None:
    world = planners_with("a", "b", planners=3)
    assert len(world.leaders) == 1
    assert world.placement.planner_id == world.leaders[0]


def test_a_planner_on_stand_by_takes_over_from_a_dead_one_and_changes_nothing() -> None:
    world = planners_with("a", "b", "c", planners=2)
    before = world.placement
    (leader,) = world.leaders
    world.kill_planner(leader)
    world.run(seconds=10)
    assert world.leaders == [next(iter(world.planners))]
    assert world.placement.replicas == before.replicas
    assert world.placement.plan_revision == before.plan_revision


def test_a_new_leader_does_not_take_its_own_ignorance_for_the_death_of_others() -> None:
    # After an outage that took the leader, too, the workers need a while to come back.
    world = planners_with("a", "b", "c", "d", planners=1)
    before = world.placement.replicas
    world.kill_planner("p1")
    reconnecting, world.workers = world.workers, {}
    world.add_planner("p9")
    world.run(seconds=3.5)
    assert world.leaders == ["p9"]
    world.workers = reconnecting
    world.run(seconds=10)
    assert world.placement.replicas == before


def test_a_loss_while_nobody_leads_is_planned_for_by_the_next_leader() -> None:
    world = planners_with("a", "b", "c", planners=1)
    world.kill_planner("p1")
    lost = world.placement.replicas[0].worker_ids[0]
    world.kill_worker(lost)
    world.run(seconds=5)
    world.add_planner("p2")
    world.run(seconds=10)
    assert lost not in {w for ids in world.shapes().values() for w in ids}
    assert len(world.placement.replicas) == 1


def test_a_frozen_leader_that_wakes_commits_nothing() -> None:
    world = planners_with("a", "b", "c", "d", planners=2)
    (old,) = world.leaders
    (new,) = set(world.planners) - {old}
    world.freeze(old)
    world.run(seconds=10)
    assert world.placement.planner_id == new
    world.notice("node-a")  # reaches the frozen one, too, which would plan for it
    world.run(seconds=3)
    committed = list(world.history)
    world.wake(old)
    assert [p.planner_id for p in world.history[len(committed) :]] == []
    world.run(seconds=10)
    assert world.leaders == [new]
    assert world.placement == committed[-1]


def test_a_leader_that_only_hung_for_a_moment_goes_on_at_once() -> None:
    world = a_world_with("a", "b", "c")
    world.freeze("p1")
    world.run(seconds=1.5)
    world.wake("p1")
    assert world.leaders == []  # it reads before it says anything
    leaving = world.placement.replicas[0].worker_ids[0]
    world.notice(f"node-{leaving}")
    world.run(seconds=0.2)
    assert world.leaders == ["p1"]
    assert leaving not in {w for ids in world.shapes().values() for w in ids}


def test_a_leader_that_freezes_between_its_decision_and_its_write_is_fenced() -> None:
    world = planners_with("a", "b", "c", "d", planners=2)
    (old,) = world.leaders
    core = world.planners[old].core
    stale_revision = world.revision
    world.freeze(old)
    world.run(seconds=10)
    assert world.placement.planner_id != old
    # What it had in hand still expects the revision from before the take-over.
    assert core.leadership.stored is not None
    assert core.leadership.stored.revision == stale_revision
    assert world.revision > stale_revision


def test_a_receipt_that_was_lost_is_found_out_by_reading() -> None:
    world = a_world_with("a", "b")
    world.loses_next_receipt = True
    world.add_worker("c")
    world.add_worker("d")
    world.run(seconds=5)
    assert world.leaders == ["p1"]
    assert len(world.placement.replicas) == 2
    revisions = [p.plan_revision for p in world.history]
    assert revisions == sorted(revisions)


def test_while_the_store_is_away_the_plan_waits_and_is_made_afterwards() -> None:
    world = a_world_with("a", "b")
    world.is_store_away = True
    world.add_worker("c")
    world.add_worker("d")
    world.run(seconds=10)
    assert len(world.placement.replicas) == 1
    world.is_store_away = False
    world.run(seconds=5)
    assert len(world.placement.replicas) == 2


def test_a_placement_that_cannot_be_read_is_told_and_replaced() -> None:
    world = PlannerWorld(stored=b"garbage", revision=7)
    for worker_id in ("a", "b"):
        world.add_worker(worker_id)
    world.add_planner("p1")
    world.run(seconds=3)
    assert len(world.placement.replicas) == 1
    assert world.planners["p1"].core.counters.placements_unreadable == 1


def test_a_lost_store_does_not_make_revisions_begin_anew() -> None:
    world = a_world_with("a", "b")
    for worker_id in "cd":
        world.add_worker(worker_id)
        world.run(seconds=1)
    world.migrate()
    epoch = max(r.replica_epoch for r in world.placement.replicas)
    world.kill_planner("p1")
    world.stored, world.revision = None, 0
    world.add_planner("p2")
    world.run(seconds=5)
    assert all(r.replica_epoch > epoch for r in world.placement.replicas)
    assert world.placement.plan_revision > epoch


def test_plan_revisions_only_grow_whoever_leads() -> None:
    world = planners_with("a", "b", "c", "d", planners=3)
    for _ in range(2):
        world.kill_planner(world.leaders[0])
        world.run(seconds=10)
        lost = world.placement.replicas[0].worker_ids[0]
        world.kill_worker(lost)
        world.run(seconds=5)
    revisions = [placement.plan_revision for placement in world.history]
    assert revisions == sorted(revisions)

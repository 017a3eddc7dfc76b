"""What a leading planner makes of reports, notices and silence."""

import pytest

from libs.contracts.placement import Policy
from libs.contracts.preemption import NoticeKind
from libs.contracts.reports import ReportedPosition
from libs.kernel.units import NS_PER_S
from libs.policy.shapes import ReplicaShape
from services.planner.options import CapacityOptions
from tests.planner_world import FAST_PAIRS, UNIX_NS, PlannerWorld, a_world_with

GRACE_S = 30


def settled(world: PlannerWorld, *, seconds: float = 1) -> PlannerWorld:
    """After a change: planned, handed over, reported."""
    world.run(seconds=seconds)
    world.migrate()
    world.run(seconds=1)
    return world


def test_the_first_plan_places_all_workers_that_report() -> None:
    world = a_world_with("a", "b", "c", "d")
    assert sorted(w for ids in world.shapes().values() for w in ids) == ["a", "b", "c", "d"]
    assert all(len(ids) == 2 for ids in world.shapes().values())
    assert world.announced[-1] == world.placement


def test_nothing_is_committed_while_nothing_happens() -> None:
    world = a_world_with("a", "b", "c")
    committed = len(world.history)
    world.run(seconds=120)
    assert len(world.history) == committed


def test_a_burst_of_joins_makes_one_plan() -> None:
    world = a_world_with("a", "b")
    committed = len(world.history)
    for worker_id in "cdefgh":
        world.add_worker(worker_id)
    world.run(seconds=1)
    assert len(world.history) == committed + 1
    assert len(world.placement.replicas) == 4


def test_a_notice_does_not_wait_for_workers_that_join() -> None:
    world = a_world_with("a", "b", "c", "d", "e")
    committed = len(world.history)
    world.add_worker("f")
    world.run(seconds=0.1)
    world.notice(f"node-{world.placement.replicas[0].worker_ids[0]}")
    world.run(seconds=0.2)
    assert len(world.history) == committed + 1


def test_workers_that_serve_alone_or_another_model_are_left_alone() -> None:
    world = a_world_with("a", "b")
    world.add_worker("solo", is_planned=False)
    world.add_worker("other", alias="other-model")
    world.run(seconds=1)
    assert world.placement.spare_worker_ids == ()
    assert set(world.shapes()) == {world.placement.replicas[0].replica_id}


def test_a_notice_moves_the_replica_off_its_node_and_leaves_the_others_untouched() -> None:
    world = a_world_with("a", "b", "c", "d", "e")
    before = {r.replica_id: r for r in world.placement.replicas}
    spare = world.placement.spare_worker_ids
    assert len(spare) == 1
    leaving = world.placement.replicas[0]
    world.notice(f"node-{leaving.worker_ids[0]}", grace_s=GRACE_S)
    world.run(seconds=1)
    after = {r.replica_id: r for r in world.placement.replicas}
    other = next(r for r in before.values() if r.replica_id != leaving.replica_id)
    assert after[other.replica_id] == other  # the same id and the same epoch: no pause
    new = next(r for i, r in after.items() if i not in before)
    assert new.inherits == (leaving.replica_id,)
    assert set(new.worker_ids) == {leaving.worker_ids[1], *spare}
    assert new.replica_epoch == world.placement.plan_revision


def test_without_a_new_replica_the_one_that_stays_inherits_once_and_is_not_disturbed() -> None:
    world = a_world_with("a", "b", "c", "d")
    leaving, staying = world.placement.replicas
    committed = len(world.history)
    world.notice(f"node-{leaving.worker_ids[0]}", grace_s=GRACE_S)
    settled(world, seconds=20)
    assert len(world.history) == committed + 1
    (after,) = world.placement.replicas
    assert after == staying.model_copy(update={"inherits": (leaving.replica_id,)})


def test_the_node_that_leaves_is_named_with_its_deadline() -> None:
    world = a_world_with("a", "b", "c", "d")
    world.notice("node-a", grace_s=GRACE_S)
    heard_ns = world.now_ns
    world.run(seconds=1)
    (leaving,) = world.placement.leaving
    assert (leaving.node_id, leaving.worker_ids) == ("node-a", ("a",))
    assert leaving.deadline_at_unix_ns == UNIX_NS + heard_ns + GRACE_S * NS_PER_S


def test_a_repeated_notice_makes_no_second_plan() -> None:
    world = a_world_with("a", "b", "c", "d")
    world.notice("node-a", grace_s=30)
    world.run(seconds=1)
    committed = len(world.history)
    for left in range(29, 20, -1):
        world.notice("node-a", grace_s=left)
        world.run(seconds=1)
    assert len(world.history) == committed
    assert len(world.told("notice_heard")) == 1


def test_overlapping_notices_are_planned_for_together() -> None:
    world = a_world_with("a", "b", "c", "d", "e", "f")
    world.notice("node-a", notice_id="n-1")
    world.run(seconds=0.3)
    world.notice("node-c", notice_id="n-2")
    world.notice("node-e", notice_id="n-3")
    world.run(seconds=1)
    placed = {w for ids in world.shapes().values() for w in ids}
    assert not placed & {"a", "c", "e"}
    assert len(placed) == 2
    assert {node.node_id for node in world.placement.leaving} == {"node-a", "node-c", "node-e"}


def test_a_withdrawn_notice_brings_the_node_back() -> None:
    world = a_world_with("a", "b")
    world.add_worker("c")
    settled(world)
    world.notice("node-a")
    settled(world)
    assert "a" not in {w for ids in world.shapes().values() for w in ids}
    world.withdraw("node-a")
    world.add_worker("d")
    settled(world)
    assert {w for ids in world.shapes().values() for w in ids} == {"a", "b", "c", "d"}


def test_a_worker_that_falls_silent_is_replaced_without_any_notice() -> None:
    world = a_world_with("a", "b", "c", "d", "e")
    (spare,) = world.placement.spare_worker_ids
    lost = world.placement.replicas[0].worker_ids[0]
    kept = world.placement.replicas[1]
    world.kill_worker(lost)
    world.run(seconds=5)
    placed = {w for ids in world.shapes().values() for w in ids}
    assert lost not in placed
    assert spare in placed
    assert kept in world.placement.replicas
    assert world.told("worker_lost") == [{"worker_id": lost}]


def test_a_worker_that_nobody_listens_for_is_lost_within_a_second() -> None:
    world = a_world_with("a", "b", "c", "d", "e")
    lost = world.placement.replicas[0].worker_ids[0]
    world.kill_worker(lost)
    world.run(seconds=1)
    assert world.told("worker_lost") == [{"worker_id": lost}]


def test_a_worker_that_hangs_but_is_connected_is_given_more_time() -> None:
    world = a_world_with("a", "b", "c", "d", "e")
    lost = world.placement.replicas[0].worker_ids[0]
    world.hang_worker(lost)
    world.run(seconds=2)
    assert not world.told("worker_lost")
    world.run(seconds=3)
    assert world.told("worker_lost") == [{"worker_id": lost}]


def test_silence_counts_for_nothing_while_the_broker_is_away() -> None:
    world = a_world_with("a", "b", "c", "d")
    committed = len(world.history)
    world.is_broker_away = True
    world.run(seconds=60)
    world.is_broker_away = False
    world.run(seconds=30)
    assert len(world.history) == committed
    assert world.told("worker_lost") == []


def test_a_newcomer_that_comes_late_is_a_spare_or_completes_a_replica() -> None:
    world = a_world_with("a", "b")
    first = world.placement.replicas[0]
    world.add_worker("c")
    settled(world)
    assert world.placement.replicas == (first,)
    world.add_worker("d")
    settled(world)
    assert first in world.placement.replicas
    assert len(world.placement.replicas) == 2


def test_a_notice_for_a_node_that_nobody_knows_is_kept_until_it_reports() -> None:
    world = a_world_with("a", "b")
    committed = len(world.history)
    world.notice("node-c")
    world.notice("node-c")
    world.run(seconds=1)
    assert len(world.history) == committed
    assert [row["is_known"] for row in world.told("notice_heard")] == [False]
    assert world.planners["p1"].core.counters.notices_of_unknown_nodes == 1
    world.add_worker("c")
    world.add_worker("d")
    world.run(seconds=1)
    assert "c" not in {w for ids in world.shapes().values() for w in ids}


def test_a_notice_that_nobody_repeats_is_forgotten_after_its_deadline() -> None:
    world = a_world_with("a", "b")
    world.add_worker("c")
    settled(world)
    world.notice("node-a", grace_s=5)
    settled(world)
    world.run(seconds=70)
    world.add_worker("d")
    settled(world)
    assert "a" in {w for ids in world.shapes().values() for w in ids}


def test_a_rebalance_recommendation_moves_nothing() -> None:
    world = a_world_with("a", "b", "c")
    committed = len(world.history)
    world.notice("node-a", kind=NoticeKind.REBALANCE)
    world.run(seconds=5)
    assert len(world.history) == committed


@pytest.mark.parametrize("fields", [{"grace_left_ms": 20_000}, {"is_draining": True}])
def test_a_worker_that_says_itself_that_it_ends_is_believed(fields: dict[str, object]) -> None:
    world = a_world_with("a", "b")
    world.add_worker("c")
    settled(world)
    world.change_worker("a", **fields)
    world.run(seconds=1)
    assert set(world.placement.replicas[0].worker_ids) == {"b", "c"}


def test_a_broken_replica_is_formed_anew_under_a_new_epoch() -> None:
    world = a_world_with("a", "b")
    before = world.placement.replicas[0]
    position = world.workers["a"].position
    assert isinstance(position, ReportedPosition)
    world.change_worker("a", position=position.model_copy(update={"is_broken": True}))
    world.run(seconds=1)
    after = world.placement.replicas[0]
    assert after.worker_ids == before.worker_ids
    assert after.replica_epoch > before.replica_epoch
    committed = len(world.history)
    world.run(seconds=5)  # the old position stays broken until the migrator drops it
    assert len(world.history) == committed


def test_a_worker_whose_death_only_its_peers_know_of_is_not_placed_again() -> None:
    world = a_world_with("a", "b", "c")
    lost, survivor = world.placement.replicas[0].worker_ids
    committed = len(world.history)
    position = world.workers[survivor].position
    assert position is not None
    world.kill_worker(lost)
    world.change_worker(survivor, position=position.model_copy(update={"is_broken": True}))
    world.run(seconds=6)
    after = world.history[committed:]
    assert after
    assert all(lost not in r.worker_ids for p in after for r in p.replicas)


def test_too_few_workers_are_told_with_what_is_missing_and_planned_for_once_there() -> None:
    world = a_world_with("a")
    assert world.placement.replicas == ()
    assert "at least 2 workers" in world.planners["p1"].core.why_no_plan
    world.add_worker("b")
    world.run(seconds=1)
    assert len(world.placement.replicas) == 1
    assert world.planners["p1"].core.why_no_plan == ""


def test_where_no_shape_fits_the_nodes_that_stay_the_last_replica_goes_on_meanwhile() -> None:
    world = a_world_with("a", "b")
    before = world.placement.replicas
    world.notice("node-a")
    world.run(seconds=2)
    assert world.placement.replicas == before
    world.kill_worker("a")
    world.run(seconds=5)
    assert world.placement.replicas == ()


def test_a_deadline_that_moves_by_little_does_not_disturb_a_hand_over() -> None:
    world = a_world_with("a", "b", "c", "d")
    world.notice("node-a", grace_s=30)
    world.run(seconds=1)
    committed = len(world.history)
    world.notice("node-a", grace_s=20)  # ten seconds earlier than was said
    world.run(seconds=1)
    assert len(world.history) == committed


def test_a_changed_policy_is_committed_even_if_the_replicas_stay() -> None:
    world = a_world_with("a", "b")
    before = world.placement.replicas
    world.kill_planner("p1")
    world.add_planner("p2", policy=Policy.SPOTSERVE)
    world.run(seconds=10)
    assert world.placement.policy is Policy.SPOTSERVE
    assert world.placement.replicas == before


@pytest.mark.parametrize("policy", [Policy.SPOTSERVE, Policy.TIDESERVE])
def test_more_arrivals_than_the_shape_can_serve_lead_to_another_shape(policy: Policy) -> None:
    # Alone, two shards are faster than one: half a layer's time each. Overloaded, four workers
    # on their own serve more than two pairs.
    world = a_world_with("a", "b", "c", "d", shape=None, policy=policy, model=FAST_PAIRS)
    assert [len(ids) for ids in world.shapes().values()] == [2, 2]
    for _ in range(70):
        world.sessions_accepted += 1_000
        world.run(seconds=1)
    assert [len(ids) for ids in world.shapes().values()] == [1, 1, 1, 1]


@pytest.mark.parametrize("policy", [Policy.SPOTSERVE, Policy.TIDESERVE])
def test_arrivals_that_the_shape_can_serve_change_nothing(policy: Policy) -> None:
    world = a_world_with("a", "b", "c", "d", shape=None, policy=policy, model=FAST_PAIRS)
    committed = len(world.history)
    for second in range(120):
        world.sessions_accepted += 5 if second % 40 < 20 else 1
        world.run(seconds=1)
    assert len(world.history) == committed


def test_spot_capacity_is_asked_for_with_one_to_spare_and_on_demand_fills_in() -> None:
    capacity = CapacityOptions(nodes_max=8, nodes_min=2, nodes_extra=1)
    world = a_world_with("a", shape=ReplicaShape(stages=1, shards=1), capacity=capacity)
    wanted = world.capacity[-1].wanted
    assert (wanted.spot_nodes, wanted.on_demand_nodes) == (3, 1)
    world.add_worker("b")
    world.run(seconds=1)
    wanted = world.capacity[-1].wanted
    assert (wanted.spot_nodes, wanted.on_demand_nodes) == (3, 0), "on demand for a spare node"


def test_a_node_at_risk_is_replaced_before_it_goes() -> None:
    capacity = CapacityOptions(nodes_max=8, nodes_min=2, nodes_extra=1)
    world = a_world_with("a", "b", capacity=capacity)
    assert world.capacity[-1].wanted.on_demand_nodes == 0
    world.notice("node-a", kind=NoticeKind.REBALANCE)
    world.run(seconds=1)
    assert world.capacity[-1].wanted.on_demand_nodes == 1


def test_a_wave_shorter_than_a_launch_asks_for_no_nodes() -> None:
    def most_wanted(*, busy_s: int) -> int:
        capacity = CapacityOptions(nodes_max=8, nodes_extra=0)
        world = a_world_with("a", "b", shape=None, model=FAST_PAIRS, capacity=capacity)
        world.run(seconds=150)
        for second in range(200):
            world.sessions_accepted += 200 if second < busy_s else 0
            world.run(seconds=1)
        return max(said.wanted.spot_nodes for said in world.capacity)

    assert most_wanted(busy_s=10) < most_wanted(busy_s=150)


def test_a_zone_that_preempts_is_no_longer_preferred() -> None:
    capacity = CapacityOptions(nodes_max=8)
    world = a_world_with("a", "b", capacity=capacity)
    for worker_id, zone in (("c", "zone-b"), ("d", "zone-c")):
        world.add_worker(worker_id, zone=zone)
    world.run(seconds=1)
    assert set(world.capacity[-1].wanted.zones_preferred) == {"zone-a", "zone-b", "zone-c"}
    world.notice("node-c")
    world.run(seconds=1)
    assert set(world.capacity[-1].wanted.zones_preferred) == {"zone-a", "zone-c"}


def test_a_lull_gives_no_nodes_back_and_a_long_quiet_time_does() -> None:
    capacity = CapacityOptions(nodes_max=8, nodes_extra=0)
    world = a_world_with("a", "b", "c", "d", shape=None, model=FAST_PAIRS, capacity=capacity)
    for _ in range(30):
        world.sessions_accepted += 400
        world.run(seconds=1)
    busy = world.capacity[-1].wanted
    assert busy.spot_nodes > 2
    world.run(seconds=240)
    assert world.capacity[-1].wanted.spot_nodes >= busy.spot_nodes
    world.run(seconds=210)
    assert world.capacity[-1].wanted.spot_nodes == 2
    assert len(world.capacity[-1].wanted.nodes_to_release) == 2


def test_without_a_bound_on_nodes_none_are_asked_for() -> None:
    world = a_world_with("a", "b")
    world.run(seconds=30)
    assert world.capacity == []

"""What goes wrong in the middle of a hand-over, and where that leads."""

from collections.abc import Callable

from libs.contracts.handover import (
    ActivateReplica,
    DropReplica,
    LoadWeights,
    ReleaseSessions,
    ResumeReplica,
    ShapeFailReason,
    StagePosition,
    StopReplica,
    ToShape,
)
from libs.contracts.handover_record import HandoverState
from libs.contracts.placement import LeavingNode, Policy
from libs.kernel.units import NS_PER_MS
from tests.scripted_fleet import UNIX_NS, Fleet, a_replica

HEIR = a_replica("replica-2", "worker-c", "worker-d", epoch=2, inherits=("replica-1",))


def run_until(fleet: Fleet, state: HandoverState) -> None:
    """Let the latest hand-over enter this state, and be stored in it."""

    def is_there() -> bool:
        record = fleet.record
        return record is not None and any(h.state is state for h in record.under_way)

    assert fleet.run(20_000, until=is_there), fleet.record


def latest(fleet: Fleet) -> list[str]:
    assert fleet.record is not None
    return fleet.states(f"handover-{fleet.record.handovers_begun}")


def test_a_source_that_dies_while_it_copies_costs_its_kv_and_nothing_else(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    fleet.place(HEIR)
    run_until(fleet, HandoverState.LOADING)
    fleet.kill_worker("worker-a")
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    assert latest(fleet)[-3:] == ["activating", "dropping", "done"], "nobody is left to be released"
    assert not any(isinstance(m, StopReplica) for m in fleet.commands_to("worker-b"))


def test_a_target_that_dies_before_the_point_of_no_return_undoes_the_hand_over(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet(Policy.SPOTSERVE)
    fleet.place(HEIR)
    run_until(fleet, HandoverState.LOADING)
    fleet.kill_worker("worker-d")
    fleet.run(5_000)
    assert latest(fleet)[-2:] == ["abandoning", "abandoned"]
    resumed = [m for m in fleet.commands_to("worker-a") if isinstance(m, ResumeReplica)]
    assert resumed
    held = fleet.workers["worker-a"].serving
    assert held is not None
    assert held.is_serving
    assert "replica-2" not in fleet.workers["worker-c"].positions
    fleet.check()


def test_a_target_that_dies_after_it_is_passed_over(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    fleet.place(
        a_replica("replica-2", "worker-c", epoch=2, inherits=("replica-1",)),
        a_replica("replica-3", "worker-d", epoch=2, inherits=("replica-1",)),
    )
    run_until(fleet, HandoverState.ACTIVATING)
    fleet.kill_worker("worker-d")
    fleet.run(5_000)
    assert latest(fleet)[-3:] == ["releasing", "dropping", "done"]
    released = [m for m in fleet.commands_to("worker-a") if isinstance(m, ReleaseSessions)]
    assert released[-1].target_worker_ids == ("worker-c",)
    fleet.check()


def test_the_last_copy_of_the_weights_is_kept_when_the_only_target_dies(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    fleet.place(HEIR)
    run_until(fleet, HandoverState.ACTIVATING)
    fleet.kill_worker("worker-d")
    fleet.run(5_000)
    assert all("replica-1" in fleet.workers[name].positions for name in ("worker-a", "worker-b"))
    fleet.place(a_replica("replica-3", "worker-a", "worker-b", epoch=3, inherits=("replica-1",)))
    assert fleet.run(10_000, until=fleet.is_reached)
    loads = [m for m in fleet.commands_to("worker-a") if isinstance(m, LoadWeights)]
    assert "replica-1" in {holder.replica_id for holder in loads[-1].holders}
    fleet.check()


def test_a_newer_placement_undoes_what_it_does_not_want(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet(Policy.SPOTSERVE)
    fleet.place(HEIR)
    run_until(fleet, HandoverState.LOADING)
    stays = a_replica("replica-1", "worker-a", "worker-b")
    fleet.place(stays)
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    assert fleet.is_in_place(stays)
    assert latest(fleet)[-2:] == ["abandoning", "abandoned"]


def test_a_newer_placement_that_wants_the_same_lets_it_go_on(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    fleet.add_worker("worker-e")
    fleet.place(HEIR)
    run_until(fleet, HandoverState.LOADING)
    fleet.place(HEIR, a_replica("replica-3", "worker-e", epoch=3))
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    assert fleet.record is not None
    assert fleet.record.handovers_abandoned == 0


def test_a_newer_placement_after_the_point_of_no_return_waits_for_the_end(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    fleet.place(HEIR)
    run_until(fleet, HandoverState.ACTIVATING)
    fleet.place(a_replica("replica-3", "worker-a", "worker-b", epoch=3, inherits=("replica-2",)))
    assert fleet.run(15_000, until=fleet.is_reached)
    fleet.check()
    assert fleet.record is not None
    assert fleet.record.handovers_abandoned == 0
    assert fleet.states("handover-2")[-1] == "done"


def test_a_late_newcomer_delays_its_own_replica_and_no_other(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    stays = a_replica("replica-1", "worker-a", "worker-b")
    punctual = a_replica("replica-2", "worker-c", epoch=2)
    late = a_replica("replica-3", "worker-late", epoch=2)
    fleet.place(stays, punctual, late)
    assert fleet.run(5_000, until=lambda: fleet.is_in_place(punctual))
    fleet.run(2_000)
    assert not fleet.is_reached()
    fleet.add_worker("worker-late")
    assert fleet.run(5_000, until=fleet.is_reached)


def test_a_command_that_fails_for_a_passing_reason_is_given_again(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    failures = iter([ShapeFailReason.PEER_LOST, ShapeFailReason.TIMED_OUT])
    fleet.workers["worker-c"].fails = lambda message: (
        next(failures, None) if isinstance(message, LoadWeights) else None
    )
    fleet.place(HEIR)
    assert fleet.run(10_000, until=fleet.is_reached)
    assert fleet.record is not None
    assert fleet.record.ended[-1].totals.commands_failed == 2
    assert fleet.record.handovers_abandoned == 0


def test_a_hand_over_that_cannot_succeed_is_undone_and_tried_ever_more_rarely(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    fleet.workers["worker-c"].fails = lambda message: (
        ShapeFailReason.NO_MEMORY if isinstance(message, StagePosition) else None
    )
    fleet.place(HEIR)
    fleet.run(20_000)
    assert fleet.record is not None
    assert 3 <= fleet.record.handovers_abandoned <= 6, "after 1, 2, 4, 8 s"
    held = fleet.workers["worker-a"].serving
    assert held is not None
    assert held.is_serving
    fleet.workers["worker-c"].fails = lambda _: None
    assert fleet.run(40_000, until=fleet.is_reached)


def test_a_source_that_may_still_compute_is_never_replaced(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    fleet.workers["worker-a"].fails = lambda message: (
        ShapeFailReason.TIMED_OUT if isinstance(message, StopReplica) else None
    )
    fleet.place(a_replica("replica-2", "worker-b", "worker-c", epoch=2, inherits=("replica-1",)))
    fleet.run(8_000)
    assert not any(isinstance(m, ActivateReplica) for m in fleet.commands_to("worker-c"))
    stops = [m for m in fleet.commands_to("worker-a") if isinstance(m, StopReplica)]
    assert any(not m.targets for m in stops), "the last attempt copies nothing"
    fleet.check()


def test_a_worker_that_never_answers_counts_as_failed(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet(answer_limit_ns=2_000 * NS_PER_MS)
    deaf = fleet.workers["worker-c"]
    deaf.receive = lambda message, *, now_ns: []  # type: ignore[method-assign]
    fleet.place(HEIR)
    fleet.run(8_000)
    assert fleet.states("handover-2") == ["staging", "abandoning", "abandoned"]
    fleet.check()


def test_a_node_that_ends_soon_sends_its_kv_before_the_weights_are_there(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    ends_at_ns = fleet.now_ns + 2_400 * NS_PER_MS
    fleet.workers["worker-a"].grace_ends_at_ns = ends_at_ns
    for worker_id in ("worker-c", "worker-d"):
        fleet.workers[worker_id].fails = slow_loading(fleet)
    fleet.run(300)  # until it is reported
    fleet.place(HEIR, leaving=(LeavingNode(node_id="node-a", worker_ids=("worker-a",)),))
    run_until(fleet, HandoverState.STOPPING)
    states = latest(fleet)
    assert states == ["staging", "forming", "loading", "stopping"]
    assert fleet.now_ns < ends_at_ns - 1_000 * NS_PER_MS
    fleet.run(10)  # until what is stored is ordered, too
    stop_sent = [m for m in fleet.commands_to("worker-a") if isinstance(m, StopReplica)]
    assert stop_sent[-1].copy_until_unix_ns is not None
    assert stop_sent[-1].copy_until_unix_ns < UNIX_NS + ends_at_ns
    assert fleet.run(10_000, until=fleet.is_reached)
    assert latest(fleet)[3:] == [
        "stopping",
        "loading",
        "activating",
        "releasing",
        "dropping",
        "done",
    ]
    fleet.check()


def slow_loading(fleet: Fleet) -> Callable[[ToShape], ShapeFailReason | None]:
    """Loading fails for a passing reason for a while, so that it takes long."""
    ends_at_ns = fleet.now_ns + 1_200 * NS_PER_MS
    return lambda message: (
        ShapeFailReason.TIMED_OUT
        if isinstance(message, LoadWeights) and fleet.now_ns < ends_at_ns
        else None
    )


def test_spotserve_decodes_until_what_is_left_of_the_grace_is_needed(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet(Policy.SPOTSERVE)
    ends_at_ns = fleet.now_ns + 6_000 * NS_PER_MS
    fleet.workers["worker-a"].grace_ends_at_ns = ends_at_ns
    fleet.run(300)  # until it is reported
    fleet.place(HEIR)
    run_until(fleet, HandoverState.STOPPING)
    left_ms = (ends_at_ns - fleet.now_ns) // NS_PER_MS
    # The reserve of 1 s, and 0.5 s for activating; the reports are up to 0.2 s old.
    assert 1_250 <= left_ms <= 1_800
    assert fleet.run(10_000, until=fleet.is_reached)


def test_overlapping_notices_end_in_the_latest_placement(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    fleet.add_worker("worker-e")
    fleet.add_worker("worker-f")
    fleet.place(HEIR)
    run_until(fleet, HandoverState.LOADING)
    fleet.workers["worker-c"].grace_ends_at_ns = fleet.now_ns + 3_000 * NS_PER_MS
    fleet.place(
        a_replica("replica-3", "worker-e", "worker-f", epoch=3, inherits=("replica-1", "replica-2"))
    )
    assert fleet.run(3_000, until=fleet.is_reached)
    fleet.check()
    assert fleet.states("handover-2")[-1] == "abandoned"


def test_a_broken_replica_is_left_to_the_planner_and_then_replaced(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    before = len(fleet.commands_to("worker-b"))
    fleet.kill_worker("worker-a")
    fleet.run(4_000)
    assert len(fleet.commands_to("worker-b")) == before
    fleet.place(a_replica("replica-2", "worker-b", "worker-c", epoch=2, inherits=("replica-1",)))
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    assert not any(isinstance(m, StopReplica) for m in fleet.commands_to("worker-b"))


def test_only_the_sources_and_failed_targets_are_freed(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    fleet.place(HEIR)
    assert fleet.run(10_000, until=fleet.is_reached)
    dropped = {
        m.replica_id
        for m in fleet.commands_to("worker-a", "worker-b", "worker-c", "worker-d")
        if isinstance(m, DropReplica)
    }
    assert dropped == {"replica-1"}

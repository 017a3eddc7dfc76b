"""A replica ends and none begins: those that stay take its sessions in, and are never paused."""

from collections.abc import Callable

import pytest

from libs.contracts.handover import CopyKv, ReleaseSessions, ResumeReplica, StopReplica
from libs.contracts.handover_record import HandoverState
from libs.contracts.placement import Policy, ReplicaPlacement
from libs.kernel.units import NS_PER_MS
from tests.scripted_fleet import Fleet, a_replica

ENDS = a_replica("replica-1", "worker-a", "worker-b")
STAYS = a_replica("replica-2", "worker-c", "worker-d", epoch=2)
OTHER = a_replica("replica-3", "worker-e", epoch=3)


def inheriting(replica: ReplicaPlacement, *replica_ids: str) -> ReplicaPlacement:
    return replica.model_copy(update={"inherits": replica_ids})


def beside(fleet: Fleet, *replicas: ReplicaPlacement) -> Fleet:
    """Let these serve beside replica-1."""
    for worker_id in (i for r in replicas for i in r.worker_ids if i not in fleet.workers):
        fleet.add_worker(worker_id)
    fleet.run(500)
    fleet.place(ENDS, *replicas)
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.run(1_000)
    return fleet


def leave(fleet: Fleet, *worker_ids: str, grace_ms: int) -> None:
    for worker_id in worker_ids:
        fleet.workers[worker_id].grace_ends_at_ns = fleet.now_ns + grace_ms * NS_PER_MS


def run_until(fleet: Fleet, state: HandoverState) -> None:
    def is_there() -> bool:
        record = fleet.record
        return record is not None and any(h.state is state for h in record.under_way)

    assert fleet.run(20_000, until=is_there), fleet.record


def latest(fleet: Fleet) -> list[str]:
    assert fleet.record is not None
    return fleet.states(f"handover-{fleet.record.handovers_begun}")


@pytest.mark.parametrize(
    ("policy", "states"),
    [
        (Policy.TIDESERVE, ["copying", "stopping", "releasing", "dropping", "done"]),
        (Policy.SPOTSERVE, ["waiting", "stopping", "releasing", "dropping", "done"]),
    ],
)
def test_its_kv_and_then_its_sessions_go_to_the_replica_that_stays(
    a_fleet: Callable[..., Fleet], policy: Policy, states: list[str]
) -> None:
    fleet = beside(a_fleet(policy), STAYS)
    heard = len(fleet.commands_to(*STAYS.worker_ids))
    leave(fleet, *ENDS.worker_ids, grace_ms=8_000)
    fleet.run(300)
    fleet.place(inheriting(STAYS, "replica-1"))
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    assert latest(fleet) == states
    commands = fleet.commands_to("worker-a")
    copies = [m for m in commands if isinstance(m, CopyKv | StopReplica)]
    assert {roster.replica_id for m in copies for roster in m.targets} == {"replica-2"}
    stop = next(m for m in commands if isinstance(m, StopReplica))
    assert stop.copy_until_unix_ns is not None
    released = next(m for m in commands if isinstance(m, ReleaseSessions))
    assert released.target_worker_ids == ("worker-c",)
    assert len(fleet.commands_to(*STAYS.worker_ids)) == heard, "whoever stays is asked nothing"
    assert fleet.record is not None
    assert fleet.record.ended[-1].totals.tokens_uncopied == 0
    assert fleet.record.ended[-1].totals.kv_blocks_moved > 0


def test_several_that_stay_are_all_named_as_heirs(a_fleet: Callable[..., Fleet]) -> None:
    fleet = beside(a_fleet(), STAYS, OTHER)
    fleet.place(inheriting(STAYS, "replica-1"), inheriting(OTHER, "replica-1"))
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    released = next(m for m in fleet.commands_to("worker-a") if isinstance(m, ReleaseSessions))
    assert released.target_worker_ids == ("worker-c", "worker-e")


def test_an_heir_that_dies_costs_nothing_while_another_is_left(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = beside(a_fleet(Policy.SPOTSERVE), STAYS, OTHER)
    leave(fleet, *ENDS.worker_ids, grace_ms=8_000)
    fleet.run(300)
    fleet.place(inheriting(STAYS, "replica-1"), inheriting(OTHER, "replica-1"))
    run_until(fleet, HandoverState.WAITING)
    fleet.kill_worker("worker-e")
    fleet.run(12_000)
    fleet.check()
    assert latest(fleet)[-1] == "done"
    released = next(m for m in fleet.commands_to("worker-a") if isinstance(m, ReleaseSessions))
    assert released.target_worker_ids == ("worker-c",)


def test_without_any_heir_left_the_source_goes_on(a_fleet: Callable[..., Fleet]) -> None:
    fleet = beside(a_fleet(Policy.SPOTSERVE), STAYS)
    leave(fleet, *ENDS.worker_ids, grace_ms=30_000)
    fleet.run(300)
    fleet.place(inheriting(STAYS, "replica-1"))
    run_until(fleet, HandoverState.WAITING)
    fleet.kill_worker("worker-d")
    fleet.run(1_500)
    fleet.place(ENDS)
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    assert not any(isinstance(m, ReleaseSessions) for m in fleet.commands_to("worker-a"))


def test_two_replicas_that_end_one_after_the_other_do_not_wait_for_each_other(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = beside(a_fleet(Policy.SPOTSERVE), STAYS, OTHER)
    leave(fleet, *ENDS.worker_ids, grace_ms=20_000)
    fleet.run(300)
    fleet.place(inheriting(STAYS, "replica-1"), OTHER)
    run_until(fleet, HandoverState.WAITING)
    leave(fleet, "worker-e", grace_ms=3_000)
    fleet.place(inheriting(STAYS, "replica-1", "replica-3"))
    assert fleet.run(3_000, until=lambda: fleet.workers["worker-e"].serving is None)
    assert fleet.record is not None
    assert [h.state for h in fleet.record.under_way][:1] == [HandoverState.WAITING]
    fleet.check()
    assert fleet.run(25_000, until=fleet.is_reached)


def test_an_heir_that_stands_still_is_started_again_first(a_fleet: Callable[..., Fleet]) -> None:
    fleet = beside(a_fleet(), STAYS)
    held = fleet.workers["worker-c"].serving
    assert held is not None
    held.phase = "stopped"
    fleet.run(500)
    fleet.place(inheriting(STAYS, "replica-1"))
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    order = [
        type(command.message)
        for migrator in fleet.migrators.values()
        for command in migrator.sent
        if isinstance(command.message, ResumeReplica | StopReplica)
    ]
    assert order.index(ResumeReplica) < order.index(StopReplica)

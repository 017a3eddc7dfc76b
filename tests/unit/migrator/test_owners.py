"""Two migrators and one record: who acts, who takes over, and what the one before can still do."""

from collections.abc import Callable

from libs.contracts.handover import ShapeFailReason
from libs.contracts.handover_record import HandoverState, HandoverStory
from tests.scripted_fleet import Fleet, a_replica

HEIR = a_replica("replica-2", "worker-c", "worker-d", epoch=2, inherits=("replica-1",))


def enter(fleet: Fleet, state: HandoverState) -> None:
    fleet.place(HEIR)

    def is_there() -> bool:
        return fleet.record is not None and any(h.state is state for h in fleet.record.under_way)

    assert fleet.run(20_000, until=is_there)


def test_one_of_two_migrators_owns_the_record_and_the_other_says_nothing(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    assert fleet.owner == "migrator-1"
    assert fleet.migrators["migrator-1"].sent
    assert not fleet.migrators["migrator-2"].sent


def test_a_successor_goes_on_in_the_very_state_with_the_very_orders(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    enter(fleet, HandoverState.LOADING)
    fleet.run(5)
    first = {c.message.op_id for c in fleet.migrators["migrator-1"].sent}
    fleet.kill_migrator("migrator-1")
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    assert fleet.owner == "migrator-2"
    taken_up = fleet.migrators["migrator-2"].sent[0].message
    assert taken_up.op_id in first
    assert taken_up.handover_epoch == 2
    assert fleet.states("handover-2") == [
        "staging",
        "forming",
        "loading",
        "copying",
        "stopping",
        "activating",
        "releasing",
        "dropping",
        "done",
    ]


def test_what_a_state_cost_is_counted_once_whoever_ends_it(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    enter(fleet, HandoverState.COPYING)
    fleet.kill_migrator("migrator-1")
    assert fleet.run(10_000, until=fleet.is_reached)
    assert fleet.record is not None
    story: HandoverStory = fleet.record.ended[-1]
    assert story.totals.weight_bytes_planned == 2 * 300
    assert story.totals.weight_bytes_from_peers == 2 * 100


def test_a_woken_owner_changes_nothing(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    enter(fleet, HandoverState.LOADING)
    fleet.freeze("migrator-1")
    assert fleet.run(10_000, until=fleet.is_reached)
    assert fleet.owner == "migrator-2"
    said = len(fleet.migrators["migrator-1"].sent)
    revision = fleet.revision
    fleet.wake("migrator-1")
    fleet.run(3_000)
    assert len(fleet.migrators["migrator-1"].sent) == said, "it asks before it speaks"
    assert fleet.revision == revision
    assert fleet.is_reached()
    assert not fleet.migrators["migrator-1"].core.conducts
    fleet.check()


def test_an_owner_that_is_refused_as_stale_claims_its_record_anew(
    a_fleet: Callable[..., Fleet],
) -> None:
    """As after the loss of the bucket: workers have obeyed later owners than the record knows."""
    fleet = a_fleet()
    for worker in fleet.workers.values():
        worker.handover_epoch = 5
    fleet.place(HEIR)
    assert fleet.run(20_000, until=fleet.is_reached)
    assert fleet.record is not None
    assert fleet.record.handover_epoch >= 5
    assert fleet.owner == "migrator-1"


def test_no_order_is_given_before_its_state_is_stored(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    sent = len(fleet.migrators["migrator-1"].sent)
    fleet.network.lost = 1.0  # the broker is away for whoever writes or reads
    fleet.place(HEIR)
    fleet.run(3_000)
    assert len(fleet.migrators["migrator-1"].sent) == sent
    fleet.network.lost = 0.0
    assert fleet.run(20_000, until=fleet.is_reached)
    fleet.check()


def test_the_record_keeps_the_stories_of_the_latest_hand_overs(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet(restart_after_ns=1, restart_after_max_ns=1, reports_settled=1)
    fleet.workers["worker-c"].fails = lambda message: (
        ShapeFailReason.NO_MEMORY if message.handover_id != "handover-1" else None
    )
    fleet.place(HEIR)
    assert fleet.run(
        30_000, until=lambda: fleet.record is not None and len(fleet.record.ended) == 32
    )
    fleet.run(1_000)
    assert fleet.record is not None
    assert fleet.record.handovers_begun > 33
    assert len(fleet.record.ended) == 32
    numbers = [int(story.handover_id.removeprefix("handover-")) for story in fleet.record.ended]
    assert numbers == sorted(numbers)

"""What each policy asks of whom, in order, when two shards become two stages."""

from collections.abc import Callable

import pytest

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    LoadWeights,
    ReleaseSessions,
    ReplicaRoster,
    StagePosition,
    StopReplica,
    WeightsFrom,
)
from libs.contracts.handover_record import HandoverState, HandoverStory
from libs.contracts.placement import Policy
from libs.kernel.units import NS_PER_MS
from libs.policy.model_profile import ModelBytes
from tests.scripted_fleet import Fleet, a_replica

COPYING_POLICIES = [Policy.SPOTSERVE, Policy.TIDESERVE]
RESTARTING_POLICIES = [Policy.REPARALLELIZE, Policy.REROUTE]


def change_shape(fleet: Fleet) -> HandoverStory:
    """replica-1 on a, b gives way to replica-2 on b, c; its sessions go there where they can."""
    inherits = ("replica-1",) if fleet.policy in COPYING_POLICIES else ()
    fleet.place(
        a_replica("replica-2", "worker-b", "worker-c", stages=2, epoch=2, inherits=inherits)
    )
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    assert fleet.record is not None
    return fleet.record.ended[-1]


def kinds_to(fleet: Fleet, worker_id: str, handover_id: str) -> list[str]:
    """The commands of one hand-over to one worker, repetitions left out."""
    seen: dict[str, str] = {}
    for message in fleet.commands_to(worker_id):
        if message.handover_id == handover_id:
            seen.setdefault(message.op_id, type(message).__name__)
    return list(seen.values())


def test_tideserve_copies_while_the_source_decodes_and_stops_it_last(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet(Policy.TIDESERVE)
    story = change_shape(fleet)
    assert fleet.states(story.handover_id) == [
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
    assert kinds_to(fleet, "worker-c", story.handover_id) == [
        "StagePosition",
        "FormReplica",
        "LoadWeights",
        "ActivateReplica",
    ]
    source = kinds_to(fleet, "worker-a", story.handover_id)
    assert source[-4:] == ["CopyKv", "StopReplica", "ReleaseSessions", "DropReplica"]
    assert set(source[:-3]) == {"CopyKv"}
    assert story.totals.tokens_uncopied == 0
    assert story.totals.kv_blocks_moved > 0
    assert story.stall_ns < 20 * NS_PER_MS


def test_spotserve_stops_before_the_weights_move(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet(Policy.SPOTSERVE)
    story = change_shape(fleet)
    assert fleet.states(story.handover_id) == [
        "staging",
        "forming",
        "waiting",
        "stopping",
        "loading",
        "activating",
        "releasing",
        "dropping",
        "done",
    ]
    assert kinds_to(fleet, "worker-a", story.handover_id) == [
        "StopReplica",
        "ReleaseSessions",
        "DropReplica",
    ]
    assert story.totals.kv_blocks_moved > 0
    assert story.stall_ns > 300 * NS_PER_MS, "the weights move while nothing is computed"


@pytest.mark.parametrize("policy", RESTARTING_POLICIES)
def test_the_baselines_restart_what_changes_from_disk(
    a_fleet: Callable[..., Fleet], policy: Policy
) -> None:
    fleet = a_fleet(policy)
    story = change_shape(fleet)
    assert fleet.states(story.handover_id) == [
        "stopping",
        "releasing",
        "dropping",
        "staging",
        "forming",
        "loading",
        "activating",
        "done",
    ]
    commands = fleet.commands_to("worker-a", "worker-b", "worker-c")
    loads = [message for message in commands if isinstance(message, LoadWeights)]
    assert {message.weights_from for message in loads} == {WeightsFrom.DISK}
    assert not any(isinstance(message, CopyKv) for message in commands)
    stops = [message for message in commands if isinstance(message, StopReplica)]
    assert stops
    assert all(not message.targets for message in stops)
    releases = [message for message in commands if isinstance(message, ReleaseSessions)]
    assert all(not message.target_worker_ids for message in releases)
    assert story.totals.tokens_uncopied > 0
    assert story.stall_ns > 300 * NS_PER_MS, "nothing is served until the new replica is"


@pytest.mark.parametrize("policy", list(Policy))
def test_a_replica_that_stays_hears_nothing(a_fleet: Callable[..., Fleet], policy: Policy) -> None:
    fleet = a_fleet(policy)
    before = len(fleet.commands_to("worker-a", "worker-b"))
    stays = a_replica("replica-1", "worker-a", "worker-b")
    fleet.place(stays, a_replica("replica-2", "worker-c", "worker-d", epoch=2))
    assert fleet.run(10_000, until=fleet.is_reached)
    assert len(fleet.commands_to("worker-a", "worker-b")) == before


def test_sessions_are_released_to_the_lead_of_the_heir(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    change_shape(fleet)
    released = [m for m in fleet.commands_to("worker-a") if isinstance(m, ReleaseSessions)]
    # The lead is shard 0 of the last stage.
    assert {message.target_worker_ids for message in released} == {("worker-c",)}


def test_the_lead_is_activated_after_its_members(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    change_shape(fleet)
    order = [
        command.worker_id
        for migrator in fleet.migrators.values()
        for command in migrator.sent
        if isinstance(command.message, ActivateReplica)
        and command.message.replica_id == "replica-2"
    ]
    assert order == ["worker-b", "worker-c"]


def test_weights_come_from_every_replica_that_holds_them(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    stays = a_replica("replica-1", "worker-a", "worker-b")
    fleet.place(stays, a_replica("replica-2", "worker-c", "worker-d", epoch=2))
    assert fleet.run(10_000, until=fleet.is_reached)
    loads = [m for m in fleet.commands_to("worker-c") if isinstance(m, LoadWeights)]
    assert names(loads[-1].holders) == ["replica-1"]
    assert names(loads[-1].targets) == ["replica-2"]
    assert loads[-1].weights_from is WeightsFrom.PEERS


def test_without_any_holder_the_first_replica_loads_by_itself(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    first = next(m for m in fleet.commands_to("worker-a") if isinstance(m, LoadWeights))
    assert first.holders == ()
    assert fleet.states("handover-1") == ["staging", "forming", "loading", "activating", "done"]


def test_forming_uses_what_the_staged_workers_said(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    fleet.place(a_replica("replica-2", "worker-c", "worker-d", epoch=2, inherits=("replica-1",)))
    formed: list[tuple[str, int]] = []

    def is_forming() -> bool:
        assert fleet.record is not None
        for handover in fleet.record.under_way:
            if handover.state is HandoverState.FORMING:
                target = handover.targets[0]
                formed.append((target.rendezvous, target.kv_blocks))
        return bool(formed)

    assert fleet.run(10_000, until=is_forming)
    assert formed[0] == ("worker-c:2", 100), "the lead's rendezvous, the least blocks of any rank"


def test_a_replica_that_nobody_inherits_is_stopped_and_released_to_nobody(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    stays = a_replica("replica-1", "worker-a", "worker-b")
    fleet.place(stays, a_replica("replica-2", "worker-c", "worker-d", epoch=2))
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.run(1_000)
    fleet.place(stays)
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()
    commands = fleet.commands_to("worker-c")
    released = [m for m in commands if isinstance(m, ReleaseSessions)]
    assert {m.target_worker_ids for m in released} == {()}
    assert any(isinstance(m, DropReplica) for m in commands)


def test_the_last_replica_is_kept_while_the_placement_has_none(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet()
    before = len(fleet.commands_to("worker-a", "worker-b"))
    fleet.place()
    fleet.run(3_000)
    assert len(fleet.commands_to("worker-a", "worker-b")) == before
    fleet.place(a_replica("replica-2", "worker-c", "worker-d", epoch=2, inherits=("replica-1",)))
    assert fleet.run(10_000, until=fleet.is_reached)
    fleet.check()


def test_spotserve_orders_layers_by_algorithm_2_where_it_knows_their_sizes(
    a_fleet: Callable[..., Fleet],
) -> None:
    size = ModelBytes(
        layers=4,
        heads=4,
        kv_heads=4,
        layer_bytes=1000,
        embedding_bytes=0,
        head_bytes=0,
        kv_bytes_per_token_layer=8,
    )
    fleet = a_fleet(Policy.SPOTSERVE, model_bytes=size, load_buffer_bytes_max=1024 * 1024)
    change_shape(fleet)
    loads = [m for m in fleet.commands_to("worker-c") if isinstance(m, LoadWeights)]
    assert sorted(loads[-1].layer_order) == [0, 1, 2, 3]


def test_each_target_is_told_its_whole_replica(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet()
    change_shape(fleet)
    staged = [m for m in fleet.commands_to("worker-c") if isinstance(m, StagePosition)]
    roster = staged[-1].replica
    assert roster.is_whole
    assert [worker.peer_address for worker in roster.workers] == ["worker-b:1", "worker-c:1"]


def names(rosters: tuple[ReplicaRoster, ...]) -> list[str]:
    return [roster.replica_id for roster in rosters]

"""On what terms a source's sessions are moved, and how long its stop waits for who finishes."""

from collections.abc import Callable

from libs.contracts.handover import CopyKv, MovingTerms, StopReplica
from libs.contracts.placement import Policy
from libs.contracts.reports import LinkRate
from libs.kernel.units import MIB, NS_PER_S
from libs.policy.model_profile import ModelBytes
from tests.scripted_fleet import Fleet, a_replica

SIZES = ModelBytes(
    layers=12,
    heads=12,
    kv_heads=4,
    layer_bytes=1_000,
    embedding_bytes=1_000,
    head_bytes=1_000,
    kv_bytes_per_token_layer=2_048,
)


def place_heir(fleet: Fleet) -> None:
    """replica-1 on a, b ends; replica-2 on c, d, which serves already, takes its sessions in."""
    fleet.place(
        a_replica("replica-1", "worker-a", "worker-b"),
        a_replica("replica-2", "worker-c", "worker-d"),
    )
    assert fleet.run(5_000, until=fleet.is_reached)
    fleet.run(1_000)
    fleet.place(a_replica("replica-2", "worker-c", "worker-d", inherits=("replica-1",)))


def terms_of(fleet: Fleet, kind: type[CopyKv | StopReplica]) -> list[MovingTerms | None]:
    return [
        message.terms
        for message in fleet.commands_to("worker-a", "worker-b")
        if isinstance(message, kind)
    ]


def state_of(fleet: Fleet) -> str:
    assert fleet.record is not None
    under_way = fleet.record.under_way
    return under_way[0].state if under_way else fleet.record.ended[-1].state


def test_tideserve_lets_sessions_finish_while_it_copies_and_none_at_the_stop(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet(Policy.TIDESERVE, model_bytes=SIZES)
    fleet.workers["worker-a"].grace_ends_at_ns = fleet.now_ns + 20 * NS_PER_S
    place_heir(fleet)
    assert fleet.run(10_000, until=fleet.is_reached)
    copying, stopping = terms_of(fleet, CopyKv), terms_of(fleet, StopReplica)
    assert copying[0] is not None
    assert copying[0].finish_within_ms > 5_000
    assert copying[0].copy_within_ms is not None
    assert copying[0].kv_bytes_per_token == 12 * 2_048 // 2
    assert stopping[0] is not None
    assert stopping[0].finish_within_ms == 0


def test_the_paper_moves_all_of_a_source_or_nothing(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet(Policy.SPOTSERVE)
    place_heir(fleet)
    assert fleet.run(10_000, until=fleet.is_reached)
    assert set(terms_of(fleet, StopReplica)) == {None}


def test_the_stop_waits_for_those_that_finish(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet(Policy.TIDESERVE)
    lead = fleet.workers["worker-a"]
    lead.grace_ends_at_ns = fleet.now_ns + 60 * NS_PER_S
    lead.sessions_finishing = 1
    place_heir(fleet)
    fleet.run(5_000)
    assert state_of(fleet) == "copying"
    lead.sessions_finishing = 0
    assert fleet.run(2_000, until=fleet.is_reached)


def test_it_waits_no_longer_than_the_node_lives(a_fleet: Callable[..., Fleet]) -> None:
    fleet = a_fleet(Policy.TIDESERVE)
    lead = fleet.workers["worker-a"]
    lead.sessions_finishing = 1
    place_heir(fleet)
    lead.grace_ends_at_ns = fleet.now_ns + 5 * NS_PER_S
    assert fleet.run(5_000, until=fleet.is_reached)
    fleet.check()


def test_where_new_replicas_wait_for_the_workers_patience_is_short(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet(Policy.TIDESERVE)
    fleet.workers["worker-a"].grace_ends_at_ns = fleet.now_ns + 60 * NS_PER_S
    fleet.place(
        a_replica("replica-2", "worker-b", "worker-c", stages=2, epoch=2, inherits=("replica-1",))
    )
    assert fleet.run(10_000, until=fleet.is_reached)
    terms = terms_of(fleet, CopyKv)[0]
    assert terms is not None
    assert terms.finish_within_ms <= 1_000


def test_measured_rates_of_the_links_to_the_heir_and_of_prefill_count(
    a_fleet: Callable[..., Fleet],
) -> None:
    fleet = a_fleet(Policy.TIDESERVE)
    lead = fleet.workers["worker-a"]
    place_heir(fleet)
    assert fleet.run(10_000, until=fleet.is_reached)
    assumed = terms_of(fleet, CopyKv)[0]
    lead.prefill_tokens_per_s = 321
    lead.link_rates = (
        LinkRate(peer_worker_id="worker-b", bytes_per_s=5),
        LinkRate(peer_worker_id="worker-c", bytes_per_s=7_000),
        LinkRate(peer_worker_id="worker-d", bytes_per_s=6_000),
    )
    place_heir(fleet)
    assert fleet.run(10_000, until=fleet.is_reached)
    measured = terms_of(fleet, CopyKv)[-1]
    assert assumed is not None
    assert measured is not None
    assert (assumed.link_bytes_per_s, assumed.prefill_tokens_per_s) == (1024 * MIB, 5_000)
    assert (measured.link_bytes_per_s, measured.prefill_tokens_per_s) == (6_000, 321)

"""Plans for small fleets, policy by policy."""

from dataclasses import replace

import pytest

from libs.contracts.placement import Policy
from libs.kernel.units import MIB, NS_PER_S
from libs.policy.device_mapping import HeldPosition
from libs.policy.model_profile import LayerTimes, ModelBytes, ModelProfile
from libs.policy.objective import Foresight, ObjectiveOptions
from libs.policy.paper_profiles import GPT_20B
from libs.policy.parallel_config import Candidate, NoShapeFits, SearchOptions, Workload
from libs.policy.placement_plan import (
    ClusterView,
    CurrentReplica,
    PlacementPlan,
    PlanOptions,
    UsableWorker,
    plan_placement,
)
from libs.policy.shapes import ParallelConfig, ReplicaShape

PAIR = ReplicaShape(stages=2, shards=1)
TIMES = LayerTimes(prefill_ns=((1, 1_000_000),), decode_ns=((1, 100_000), (8, 120_000)))
MODEL = ModelProfile(
    name="small",
    source="made up",
    size=ModelBytes(
        layers=4, heads=4, kv_heads=4, layer_bytes=8 * MIB, embedding_bytes=0, head_bytes=0,
        kv_bytes_per_token_layer=1024,
    ),
    times_by_shards={1: TIMES, 2: TIMES},
    embedding_ns=((1, 10_000),),
    hop_prefill_ns=100_000,
    hop_decode_ns=10_000,
    prompt_tokens=96,
    output_tokens=32,
)  # fmt: skip


def workers(*ids: str, held: dict[str, HeldPosition] | None = None) -> tuple[UsableWorker, ...]:
    held = held or {}
    return tuple(
        UsableWorker(worker_id=i, node_id=f"node-{i}", held=held.get(i), memory_bytes=2**30)
        for i in ids
    )


def a_replica(replica_id: str, *worker_ids: str, tokens: int = 0) -> CurrentReplica:
    shape = ReplicaShape(stages=len(worker_ids), shards=1)
    return CurrentReplica(
        replica_id=replica_id,
        replica_epoch=1,
        shape=shape,
        worker_ids=worker_ids,
        kv_tokens=tokens,
    )


def positions(*replicas: CurrentReplica) -> dict[str, HeldPosition]:
    return {
        worker_id: HeldPosition(
            replica_id=replica.replica_id, shape=replica.shape, stage=rank, shard=0
        )
        for replica in replicas
        for rank, worker_id in enumerate(replica.worker_ids)
    }


def view(worker_ids: str, *replicas: CurrentReplica, rate: float = 1.0) -> ClusterView:
    return ClusterView(
        workers=workers(*worker_ids, held=positions(*replicas)),
        replicas=replicas,
        workload=Workload(requests_per_s=rate),
    )


def options(policy: Policy = Policy.TIDESERVE, **fields: object) -> PlanOptions:
    return PlanOptions(policy=policy, search=replace(SearchOptions(shape_only=PAIR), **fields))  # type: ignore[arg-type]


def planned(
    cluster: ClusterView, chosen: PlanOptions, profile: ModelProfile = MODEL
) -> PlacementPlan:
    plan = plan_placement(cluster, profile=profile, options=chosen)
    assert isinstance(plan, PlacementPlan), plan
    return plan


@pytest.mark.parametrize("policy", [p for p in Policy if p is not Policy.REPARALLELIZE])
def test_a_replica_whose_workers_stay_is_kept_as_it_is(policy: Policy) -> None:
    one, two = a_replica("one", "a", "b"), a_replica("two", "c", "d")
    plan = planned(view("abde", one, two), options(policy))
    assert plan.replicas[0].kept == one
    assert plan.replicas[1].kept is None
    assert set(plan.replicas[1].worker_ids) == {"d", "e"}


def test_reparallelizing_restarts_all_replicas_if_one_changes() -> None:
    one, two = a_replica("one", "a", "b"), a_replica("two", "c", "d")
    plan = planned(view("abde", one, two), options(Policy.REPARALLELIZE))
    assert [(replica.kept, replica.inherits) for replica in plan.replicas] == [(None, ())] * 2


def test_reparallelizing_restarts_nothing_if_only_a_spare_worker_comes() -> None:
    one, two = a_replica("one", "a", "b"), a_replica("two", "c", "d")
    plan = planned(view("abcde", one, two), options(Policy.REPARALLELIZE))
    assert [replica.kept for replica in plan.replicas] == [one, two]


@pytest.mark.parametrize("policy", list(Policy))
def test_nothing_changes_while_nothing_happens(policy: Policy) -> None:
    one, two = a_replica("one", "a", "b"), a_replica("two", "c", "d")
    plan = planned(view("abcd", one, two), options(policy))
    assert [replica.kept for replica in plan.replicas] == [one, two]
    assert plan.bytes_moved == 0


def test_the_survivor_of_a_broken_pair_keeps_its_stage() -> None:
    one = a_replica("one", "a", "b", tokens=50)
    plan = planned(view("bz", one), options())
    assert plan.replicas[0].worker_ids == ("z", "b")
    assert plan.replicas[0].inherits == ("one",)


@pytest.mark.parametrize(
    ("policy", "inherits"),
    [
        (Policy.TIDESERVE, ("one",)),
        (Policy.SPOTSERVE, ("one",)),
        (Policy.REPARALLELIZE, ()),
        (Policy.REROUTE, ()),
    ],
)
def test_the_baselines_inherit_nothing(policy: Policy, inherits: tuple[str, ...]) -> None:
    plan = planned(view("bz", a_replica("one", "a", "b", tokens=50)), options(policy))
    assert plan.replicas[0].inherits == inherits


@pytest.mark.parametrize(
    ("policy", "inherits"),
    [(Policy.TIDESERVE, {"one", "two"}), (Policy.SPOTSERVE, {"two"})],
)
def test_of_two_replicas_that_become_one_the_paper_keeps_the_one_with_more_tokens(
    policy: Policy, inherits: set[str]
) -> None:
    one, two = a_replica("one", "a", "b", tokens=5), a_replica("two", "c", "d", tokens=9)
    plan = planned(view("ac", one, two), options(policy))
    assert set(plan.replicas[0].inherits) == inherits


def test_a_broken_replica_is_formed_anew_on_the_same_workers() -> None:
    one = replace(a_replica("one", "a", "b"), is_broken=True)
    plan = planned(view("ab", one), options())
    assert plan.replicas[0].kept is None
    assert plan.replicas[0].worker_ids == ("a", "b")
    assert plan.replicas[0].inherits == ()


def test_whom_an_unfinished_hand_over_was_to_move_is_inherited_too() -> None:
    # The placement before gave old's sessions to new; new loses a worker before it began.
    old = replace(a_replica("old", "a", "b", tokens=70), is_placed=False)
    new = replace(a_replica("new", "c", "d"), inherits=("old",))
    plan = planned(view("cz", old, new), options())
    assert set(plan.replicas[0].inherits) == {"old", "new"}


def test_what_a_kept_replica_inherits_is_not_promised_twice() -> None:
    old = replace(a_replica("old", "a", "b", tokens=70), is_placed=False)
    new = replace(a_replica("new", "c", "d"), inherits=("old",))
    plan = planned(view("cdyz", old, new), options())
    assert plan.replicas[0].kept == new
    assert plan.replicas[1].inherits == ()


def test_a_replica_that_stays_takes_in_the_sessions_of_one_that_ends() -> None:
    ends, stays = a_replica("ends", "a", "b", tokens=70), a_replica("stays", "c", "d", tokens=9)
    plan = planned(view("bcd", ends, stays), options())
    assert [(r.kept, r.inherits) for r in plan.replicas] == [(stays, ("ends",))]
    assert plan.spare_worker_ids == ("b",)
    assert plan.bytes_moved == 0


def test_under_rerouting_a_replica_that_stays_takes_nothing_in() -> None:
    ends, stays = a_replica("ends", "a", "b", tokens=70), a_replica("stays", "c", "d")
    plan = planned(view("bcd", ends, stays), options(Policy.REROUTE))
    assert [(r.kept, r.inherits) for r in plan.replicas] == [(stays, ())]


def test_one_replica_that_ends_is_shared_by_all_that_stay() -> None:
    stay = [a_replica(f"stays-{i}", i, i.upper(), tokens=5) for i in "cde"]
    plan = planned(view("bcCdDeE", a_replica("ends", "a", "b", tokens=90), *stay), options())
    assert [r.inherits for r in plan.replicas] == [("ends",)] * 3


def test_of_those_that_stay_the_lightest_inherits_the_heaviest() -> None:
    light, heavy = a_replica("light", "e", "f", tokens=1), a_replica("heavy", "g", "h", tokens=8)
    ending = [a_replica("much", "a", "b", tokens=50), a_replica("little", "c", "d", tokens=20)]
    plan = planned(view("efgh", *ending, light, heavy), options())
    assert {r.kept: r.inherits for r in plan.replicas} == {light: ("much",), heavy: ("little",)}


def test_where_a_replica_is_new_it_inherits_and_those_that_stay_do_not() -> None:
    ends, stays = a_replica("ends", "a", "b", tokens=70), a_replica("stays", "c", "d")
    plan = planned(view("bcdz", ends, stays), options())
    assert [r.inherits for r in plan.replicas] == [(), ("ends",)]


@pytest.mark.parametrize("fault", ["is_broken", "has_lead", "is_whole"])
def test_a_replica_whose_kv_cannot_be_copied_is_inherited_by_nobody_that_stays(
    fault: str,
) -> None:
    ends = replace(a_replica("ends", "a", "b", tokens=70), **{fault: fault == "is_broken"})
    plan = planned(view("bcd", ends, a_replica("stays", "c", "d")), options())
    assert [r.inherits for r in plan.replicas] == [()]


def test_a_replica_that_stays_forgets_whom_it_inherited_once_they_are_gone() -> None:
    moving = replace(a_replica("moving", "a", "b", tokens=7), is_placed=False)
    stays = replace(a_replica("stays", "c", "d"), inherits=("gone", "moving"))
    plan = planned(view("cd", moving, stays), options())
    assert [r.inherits for r in plan.replicas] == [("moving",)]


def test_the_workers_left_over_are_spare() -> None:
    plan = planned(view("abc"), options())
    assert len(plan.replicas) == 1
    assert len(plan.spare_worker_ids) == 1


def test_of_too_many_replicas_those_with_most_tokens_stay() -> None:
    poor, rich = a_replica("poor", "a", "b", tokens=1), a_replica("rich", "c", "d", tokens=9)
    plan = planned(view("abcd", poor, rich, rate=0.01), options(uses_all_workers=False))
    assert [replica.kept for replica in plan.replicas] == [rich]
    assert plan.spare_worker_ids == ("a", "b")


def test_rerouting_never_changes_the_shape_it_began_with() -> None:
    cluster = ClusterView(
        workers=tuple(UsableWorker(worker_id=f"w{n:02}", node_id=f"n{n // 4}") for n in range(48)),
        replicas=(
            CurrentReplica(
                replica_id="gone",
                replica_epoch=1,
                shape=ReplicaShape(stages=3, shards=4),
                worker_ids=tuple(f"x{n}" for n in range(12)),
            ),
        ),
        workload=Workload(requests_per_s=0.4),
    )
    rerouted = planned(cluster, PlanOptions(policy=Policy.REROUTE), GPT_20B)
    assert rerouted.candidate.config.shape == ReplicaShape(stages=3, shards=4)
    searched = planned(cluster, PlanOptions(policy=Policy.REPARALLELIZE), GPT_20B)
    assert searched.candidate.config.shape != ReplicaShape(stages=3, shards=4)


def test_a_shape_that_does_not_fit_is_refused_with_what_is_missing() -> None:
    refused = plan_placement(view("a"), profile=MODEL, options=options())
    assert isinstance(refused, NoShapeFits)
    assert refused.workers_missing == 1
    assert "at least 2 workers" in refused.reason


def a_candidate(
    shape: ReplicaShape, *, latency_s: float, replicas: int = 1, rate: float = 5, ok: bool = True
) -> Candidate:
    latency_ns = round(latency_s * NS_PER_S)
    return Candidate(
        config=ParallelConfig(replicas=replicas, shape=shape, batch=4),
        execution_ns=latency_ns,
        latency_ns=latency_ns,
        requests_per_s=rate,
        keeps_up=ok,
    )


WIDE = ReplicaShape(stages=1, shards=2)


def foresight(options: ObjectiveOptions) -> Foresight:
    return Foresight(profile=MODEL, options=options, shape_now=PAIR, nodes=4)


def foreseen(*found: Candidate, **fields: object) -> ReplicaShape:
    chosen = replace(ObjectiveOptions(losses_per_node_hour=0.0), **fields)  # type: ignore[arg-type]
    return foresight(chosen).choose(found).config.shape


def test_a_small_gain_is_no_reason_to_change_the_shape() -> None:
    present = a_candidate(PAIR, latency_s=10)
    assert foreseen(present, a_candidate(WIDE, latency_s=9.5)) == PAIR
    assert foreseen(present, a_candidate(WIDE, latency_s=8)) == WIDE


def test_a_change_that_stalls_for_long_is_not_made_for_a_short_time() -> None:
    found = (a_candidate(PAIR, latency_s=10), a_candidate(WIDE, latency_s=8))
    slow_link = {"link_bytes_per_s": MIB}
    assert foreseen(*found, **slow_link, horizon_ns=100 * NS_PER_S) == PAIR
    assert foreseen(*found, **slow_link, horizon_ns=100_000 * NS_PER_S) == WIDE


def test_a_shape_that_falls_behind_is_left_whatever_the_gain() -> None:
    behind = a_candidate(PAIR, latency_s=5, ok=False)
    assert foreseen(behind, a_candidate(WIDE, latency_s=9.5)) == WIDE


def test_where_nothing_keeps_up_clearly_more_throughput_wins() -> None:
    present = a_candidate(PAIR, latency_s=5, rate=5.0, ok=False)
    assert foreseen(present, a_candidate(WIDE, latency_s=5, rate=5.2, ok=False)) == PAIR
    assert foreseen(present, a_candidate(WIDE, latency_s=5, rate=6.0, ok=False)) == WIDE


def test_losses_to_come_favour_many_small_replicas() -> None:
    risky = ObjectiveOptions(losses_per_node_hour=30.0, link_bytes_per_s=MIB)
    one = a_candidate(PAIR, latency_s=9, replicas=1)
    four = a_candidate(PAIR, latency_s=9, replicas=4)
    calm = replace(risky, losses_per_node_hour=0.0)
    assert foresight(risky).score_ns(one) > foresight(risky).score_ns(four)
    assert foresight(calm).score_ns(one) == foresight(calm).score_ns(four)

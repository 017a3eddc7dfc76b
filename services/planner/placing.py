"""From a plan to the placement that is committed, and whether it differs from the one that is."""

from dataclasses import dataclass, replace

from libs.contracts.placement import LeavingNode, PinnedShape, Placement, ReplicaPlacement
from libs.policy.parallel_config import ConfigSearch, NoShapeFits, Workload
from libs.policy.placement_plan import (
    ClusterView,
    PlacementPlan,
    PlannedReplica,
    plan_placement,
)
from libs.policy.shapes import ReplicaShape
from services.planner.fleet import Fleet
from services.planner.options import PlannerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningMoment:
    """When, why and for what a placement is made."""

    plan_revision: int
    requests_per_s: float
    pinned_shape: PinnedShape | None
    reason: str
    cause_id: str
    now_ns: int
    now_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A placement, and what the plan said about it."""

    placement: Placement
    bytes_moved: int = 0
    requests_per_s_max: float | None = None
    """What its shape can serve; None: unknown, no shape fits."""
    why_no_plan: str = ""


def make_placement(
    fleet: Fleet, before: Placement, *, options: PlannerOptions, moment: PlanningMoment
) -> Planned:
    """Plan for what the fleet is now.

    Where no shape fits the nodes that stay, whatever replica still stands goes on, on nodes that
    leave, too: their last seconds are better than none.
    """
    view = fleet.view(before, requests_per_s=moment.requests_per_s)
    plan = _plan(view, options=options, pinned=moment.pinned_shape)
    leaving = fleet.leaving_nodes(now_ns=moment.now_ns, now_unix_ns=moment.now_unix_ns)
    if isinstance(plan, NoShapeFits):
        standing = tuple(
            replica
            for replica in before.replicas
            if all(fleet.is_living(worker_id) for worker_id in replica.worker_ids)
        )
        placement = _placement(
            before, options=options, moment=moment, replicas=standing, leaving=leaving
        )
        return Planned(placement=placement, why_no_plan=plan.reason)
    return Planned(
        placement=_placement(
            before,
            options=options,
            moment=moment,
            replicas=_replicas(plan, before, plan_revision=moment.plan_revision),
            leaving=leaving,
            spare_worker_ids=plan.spare_worker_ids,
            batch_sequences_max=plan.candidate.config.batch,
        ),
        bytes_moved=plan.bytes_moved,
        requests_per_s_max=plan.candidate.requests_per_s,
    )


def is_other(placement: Placement, before: Placement) -> bool:
    """Whether anybody has to do or to remember anything: replicas, policy or pinned shape differ.

    Spare workers, deadlines and batch sizes alone are no reason: a new revision makes a hand-over
    that is under way start over.
    """
    return _essence(placement) != _essence(before)


def can_pin(shape: PinnedShape, options: PlannerOptions) -> bool:
    """Whether the model can be cut like this at all, given workers enough."""
    wanted = ReplicaShape(stages=shape.stages, shards=shape.shards)
    search = ConfigSearch(
        profile=options.profile,
        workload=Workload(requests_per_s=options.requests_per_s_min),
        workers=wanted.workers,
        memory_bytes=None,
        options=options.plan.search,
    )
    return wanted in search.shapes()


def _essence(placement: Placement) -> tuple[object, ...]:
    replica_ids = sorted(replica.replica_id for replica in placement.replicas)
    return (placement.policy, placement.pinned_shape, replica_ids)


def _plan(
    view: ClusterView, *, options: PlannerOptions, pinned: PinnedShape | None
) -> PlacementPlan | NoShapeFits:
    """Plan in the pinned shape; in another where that does not fit."""
    if pinned is not None:
        shape = ReplicaShape(stages=pinned.stages, shards=pinned.shards)
        search = replace(options.plan.search, shape_only=shape)
        pinned_plan = replace(options.plan, search=search)
        plan = plan_placement(view, profile=options.profile, options=pinned_plan)
        if isinstance(plan, PlacementPlan):
            return plan
    return plan_placement(view, profile=options.profile, options=options.plan)


def _replicas(
    plan: PlacementPlan, before: Placement, *, plan_revision: int
) -> tuple[ReplicaPlacement, ...]:
    by_id = {replica.replica_id: replica for replica in before.replicas}
    replicas = []
    for number, planned in enumerate(plan.replicas, start=1):
        if planned.kept is not None:
            stays = by_id[planned.kept.replica_id]
            replicas.append(stays.model_copy(update={"inherits": planned.inherits}))
        else:
            replicas.append(_new_replica(planned, plan_revision=plan_revision, number=number))
    return tuple(replicas)


def _new_replica(planned: PlannedReplica, *, plan_revision: int, number: int) -> ReplicaPlacement:
    return ReplicaPlacement(
        replica_id=f"replica-{plan_revision}-{number}",
        replica_epoch=plan_revision,
        stages=planned.shape.stages,
        shards=planned.shape.shards,
        worker_ids=planned.worker_ids,
        inherits=planned.inherits,
    )


def _placement(
    before: Placement,
    *,
    options: PlannerOptions,
    moment: PlanningMoment,
    replicas: tuple[ReplicaPlacement, ...],
    leaving: tuple[LeavingNode, ...],
    spare_worker_ids: tuple[str, ...] = (),
    batch_sequences_max: int | None = None,
) -> Placement:
    return Placement(
        plan_revision=moment.plan_revision,
        alias=options.alias,
        policy=options.plan.policy,
        replicas=replicas,
        spare_worker_ids=spare_worker_ids,
        leaving=leaving,
        batch_sequences_max=batch_sequences_max or before.batch_sequences_max,
        reason=moment.reason[:1024],
        planned_at_unix_ns=moment.now_unix_ns,
        pinned_shape=moment.pinned_shape,
        planner_id=options.planner_id,
        cause_id=moment.cause_id,
    )

"""From a view of the fleet to a placement: one function, four policies.

    spotserve      Algorithm 1, then Kuhn-Munkres with sessions and KV in mind; one old replica for
                   each new pipeline, the sessions of further ones are computed anew
    reparallelize  the same shapes; where anything changes all start anew and inherit nothing
    reroute        the first shape for ever; replicas are dropped and added whole
    tideserve      waiting, cost of change and risk in the choice; every old replica is inherited

But for reparallelize, a replica whose workers all stay and whose shape is the chosen one stays as
it is, under its own id and epoch: it need not even notice (see device_mapping for why that is
best).
Sessions of a replica that ends go to new ones; where none is new, replicas that stay take them in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from libs.contracts.placement import Policy
from libs.policy.device_mapping import (
    DeviceMapping,
    HeldPosition,
    Holder,
    MappingTask,
    map_two_step,
)
from libs.policy.inheritance import EndingReplica, choose_heirs
from libs.policy.model_profile import ModelProfile
from libs.policy.objective import Foresight, ObjectiveOptions
from libs.policy.parallel_config import (
    Candidate,
    ConfigSearch,
    NoShapeFits,
    SearchOptions,
    ShapeMemory,
    Workload,
    best_of,
)
from libs.policy.shapes import ReplicaShape


@dataclass(frozen=True, slots=True, kw_only=True)
class UsableWorker:
    """A worker that lives and whose node stays."""

    worker_id: str
    node_id: str
    is_spot: bool = False
    memory_bytes: int | None = None
    """For weights and KV; None: not told."""
    held: HeldPosition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentReplica:
    """A replica that was placed or still runs."""

    replica_id: str
    replica_epoch: int
    shape: ReplicaShape
    worker_ids: tuple[str, ...]
    """By rank."""
    inherits: tuple[str, ...] = ()
    kv_tokens: int = 0
    is_placed: bool = True
    """In the committed placement; else it only still runs."""
    is_broken: bool = False
    has_lead: bool = True
    """Its lead lives, if only for a while: sessions can be handed over."""
    is_whole: bool = True
    """All its workers live, if only for a while: its KV can be copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """All that a plan depends on; the same view gives the same plan."""

    workers: tuple[UsableWorker, ...]
    replicas: tuple[CurrentReplica, ...] = ()
    workload: Workload
    link_bytes_per_s: int | None = None
    memory: ShapeMemory | None = None
    """What the workers say they need; None: what the profile says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How plans are made."""

    policy: Policy
    search: SearchOptions = field(default_factory=SearchOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedReplica:
    """A replica of the new placement."""

    kept: CurrentReplica | None
    """The one that stays as it is; None: a new one."""
    shape: ReplicaShape
    worker_ids: tuple[str, ...]
    inherits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPlan:
    """The outcome."""

    candidate: Candidate
    replicas: tuple[PlannedReplica, ...]
    spare_worker_ids: tuple[str, ...]
    bytes_moved: int
    """Weights and KV that the workers of new replicas lack for their positions."""
    bytes_needed: int


def plan_placement(
    view: ClusterView, *, profile: ModelProfile, options: PlanOptions
) -> PlacementPlan | NoShapeFits:
    """Decide the placement for this view, or say why there is none."""
    candidate = _choose(view, profile=profile, options=options)
    if isinstance(candidate, NoShapeFits):
        return candidate
    shape, count = candidate.config.shape, candidate.config.replicas
    kept = _kept(view, shape=shape, count=count)
    if options.policy is Policy.REPARALLELIZE and _changes_anything(kept, view, count=count):
        kept = []
    # What a replica that stays inherits already is on its way there.
    settled = {replica.replica_id for replica in kept}
    settled |= {older for replica in kept for older in replica.inherits}
    busy = {worker_id for replica in kept for worker_id in replica.worker_ids}
    holders = [
        Holder(worker_id=worker.worker_id, node_id=worker.node_id, held=worker.held)
        for worker in sorted(view.workers, key=lambda w: (w.is_spot, w.node_id, w.worker_id))
        if worker.worker_id not in busy
    ]
    ending = [replica for replica in view.replicas if replica.replica_id not in settled]
    heirs = _heirs(ending, pipelines=count - len(kept), policy=options.policy)
    mapping = DeviceMapping(pipelines=(), bytes_needed=0, bytes_kept=0)
    if heirs:
        task = MappingTask(
            size=profile.size,
            shape=shape,
            holders=holders,
            heirs=heirs,
            kv_tokens={replica.replica_id: replica.kv_tokens for replica in ending},
        )
        mapping = map_two_step(task)
    new = [
        PlannedReplica(
            kept=None, shape=shape, worker_ids=ids, inherits=_lineage(inherited, view.replicas)
        )
        for ids, inherited in zip(mapping.pipelines, heirs, strict=True)
    ]
    placed = busy | {worker_id for replica in new for worker_id in replica.worker_ids}
    return PlacementPlan(
        candidate=candidate,
        replicas=(*_staying(kept, view, ending=() if new else ending, policy=options.policy), *new),
        spare_worker_ids=tuple(
            sorted(w.worker_id for w in view.workers if w.worker_id not in placed)
        ),
        bytes_moved=mapping.bytes_moved,
        bytes_needed=mapping.bytes_needed,
    )


# ------------------------------------------------------------------ the shape


def _choose(
    view: ClusterView, *, profile: ModelProfile, options: PlanOptions
) -> Candidate | NoShapeFits:
    search = ConfigSearch(
        profile=profile,
        workload=view.workload,
        workers=len(view.workers),
        memory_bytes=min((w.memory_bytes for w in view.workers if w.memory_bytes), default=None),
        options=replace(options.search, shape_only=_shape_given(view, options)),
        memory=view.memory,
    )
    found = search.candidates()
    if not found:
        return search.why_nothing_fits()
    match options.policy:
        case Policy.SPOTSERVE | Policy.REPARALLELIZE | Policy.REROUTE:
            return best_of(found, search.options)
        case Policy.TIDESERVE:
            foresight = Foresight(
                profile=profile,
                options=options.objective,
                shape_now=_shape_now(view),
                nodes=len({worker.node_id for worker in view.workers}),
                link_bytes_per_s=view.link_bytes_per_s,
            )
            return foresight.choose(found)
        case _:
            assert_never(options.policy)


def _shape_given(view: ClusterView, options: PlanOptions) -> ReplicaShape | None:
    """The operator's shape, or the present one for a policy that never changes it."""
    if options.policy is Policy.REROUTE and options.search.shape_only is None:
        return _shape_now(view)
    return options.search.shape_only


def _shape_now(view: ClusterView) -> ReplicaShape | None:
    """The shape that most placed replicas have; all have one unless shapes were mixed by hand."""
    counts: dict[ReplicaShape, int] = {}
    for replica in view.replicas:
        if replica.is_placed:
            counts[replica.shape] = counts.get(replica.shape, 0) + 1
    return max(sorted(counts), key=lambda shape: counts[shape], default=None)


# ------------------------------------------------------------------ who stays, who goes where


def _kept(view: ClusterView, *, shape: ReplicaShape, count: int) -> list[CurrentReplica]:
    """The replicas that need not change, those with most KV first if not all may stay."""
    usable = {worker.worker_id for worker in view.workers}
    whole = [
        replica
        for replica in view.replicas
        if replica.is_placed
        and not replica.is_broken
        and replica.shape == shape
        and usable.issuperset(replica.worker_ids)
    ]
    whole.sort(key=lambda replica: (-replica.kv_tokens, replica.replica_id))
    return sorted(whole[:count], key=lambda replica: (replica.replica_epoch, replica.replica_id))


def _changes_anything(kept: Sequence[CurrentReplica], view: ClusterView, *, count: int) -> bool:
    """Whether a replica ends or begins, which restarts all of them in SpotServe's baseline."""
    return len(kept) < count or any(r.is_placed and r not in kept for r in view.replicas)


def _staying(
    kept: Sequence[CurrentReplica],
    view: ClusterView,
    *,
    ending: Sequence[CurrentReplica],
    policy: Policy,
) -> list[PlannedReplica]:
    """Share out those that end, too: the heaviest goes to whoever has least KV so far."""
    heirs = _heirs([r for r in ending if r.is_whole], pipelines=len(kept), policy=policy)
    lightest_first = sorted(kept, key=lambda replica: (replica.kv_tokens, replica.replica_id))
    gained = {
        replica.replica_id: inherited
        for replica, inherited in zip(lightest_first, heirs, strict=True)
    }
    present = {replica.replica_id for replica in view.replicas}
    return [
        PlannedReplica(
            kept=replica,
            shape=replica.shape,
            worker_ids=replica.worker_ids,
            inherits=_lineage(
                [
                    *(older for older in replica.inherits if older in present),
                    *gained[replica.replica_id],
                ],
                view.replicas,
            ),
        )
        for replica in kept
    ]


def _heirs(
    ending: Sequence[CurrentReplica], *, pipelines: int, policy: Policy
) -> tuple[tuple[str, ...], ...]:
    match policy:
        case Policy.REPARALLELIZE | Policy.REROUTE:
            return ((),) * pipelines
        case Policy.SPOTSERVE | Policy.TIDESERVE:
            return choose_heirs(
                [
                    EndingReplica(replica_id=replica.replica_id, kv_tokens=replica.kv_tokens)
                    for replica in ending
                    if replica.has_lead and not replica.is_broken
                ],
                pipelines=pipelines,
                drops_surplus=policy is Policy.SPOTSERVE,
            )
        case _:
            assert_never(policy)


def _lineage(inherited: Sequence[str], replicas: Sequence[CurrentReplica]) -> tuple[str, ...]:
    """Whom to inherit, and whom those inherit in turn: a hand-over to them may not have ended."""
    by_id = {replica.replica_id: replica for replica in replicas}
    lineage = dict.fromkeys(inherited)
    for replica_id in inherited:
        lineage |= dict.fromkeys(older for older in by_id[replica_id].inherits if older in by_id)
    return tuple(lineage)

"""From a placement and the fleet as it is to the hand-overs that can begin now.

Sources are replicas that somebody holds and the placement does not want; targets are those that it
wants and that do not serve yet. Sources and targets that share a worker, or sessions, change
together: they are one hand-over. All others go their own way. What is in place already is not
touched, but takes sessions in, of several hand-overs at once if need be. A hand-over begins once
all of its targets' workers live and nothing else is done to them; a newcomer that is late delays
its own replica and no other.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from libs.contracts.handover import worker_ids_of
from libs.contracts.handover_record import Handover, HandoverSource, HandoverTarget
from libs.contracts.placement import Placement, ReplicaPlacement
from services.migrator.fleet_view import FleetView, HeldReplica
from services.migrator.transitions import is_from_disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A hand-over that may begin."""

    sources: tuple[HandoverSource, ...] = ()
    targets: tuple[HandoverTarget, ...] = ()
    is_resumption: bool = False
    """The sources are wanted after all and only stand still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """All that separates the fleet from the placement."""

    ready: tuple[Change, ...]
    blocked: int
    """Changes that wait for a worker."""

    @property
    def is_nothing(self) -> bool:
        """Whether the fleet has the placement's shape."""
        return not self.ready and not self.blocked


@dataclass(slots=True, kw_only=True)
class _Group:
    """Replicas that change together, while they are being collected."""

    sources: list[HeldReplica] = field(default_factory=list)
    targets: list[ReplicaPlacement] = field(default_factory=list)


def changes_between(
    placement: Placement, view: FleetView, *, under_way: Sequence[Handover]
) -> Changes:
    """Compare the placement with the fleet, leaving alone whom a hand-over under way occupies."""
    held = {replica.name: replica for replica in view.replicas()}
    placed = {(r.replica_id, r.replica_epoch): r for r in placement.replicas}
    in_place = {
        name
        for name, replica in placed.items()
        if name in held and _has_the_workers(held[name], replica)
    }
    ready: list[Change] = []
    blocked = 0
    standing = [held[name] for name in sorted(in_place) if not held[name].is_serving]
    # Only some workers of a replica have activated it: that is cleared away, then staged anew. One
    # that is broken or lacks a worker is the planner's to place again, under a later epoch.
    remnants = [held[name] for name in sorted(held.keys() & placed.keys() - in_place)]
    for replica in standing:
        change = Change(sources=(_source(replica, is_broken=False),), is_resumption=True)
        ready.append(change)
    for replica in remnants:
        whole = view.roster_of(placed[replica.name])
        if whole.is_whole and not replica.is_broken and not replica.is_serving:
            ready.append(Change(sources=(HandoverSource(replica=whole, is_lost=True),)))
        else:
            blocked += 1
    sources = [held[name] for name in sorted(held.keys() - placed.keys())]
    targets = [
        placed[name] for name in sorted(placed.keys() - in_place - {r.name for r in remnants})
    ]
    heirs = [placed[name] for name in sorted(in_place)]
    still = {replica.name for replica in standing}
    for group in _groups(sources, targets, heirs):
        change_or_none = _change(group, placement, view, in_place=in_place, still=still)
        if change_or_none is None or _ends_the_last(change_or_none, placement, in_place=in_place):
            blocked += 1
        else:
            ready.append(change_or_none)
    free = [c for c in ready if _is_free(c, view, under_way)]
    return Changes(ready=tuple(free), blocked=blocked + len(ready) - len(free))


def _has_the_workers(held: HeldReplica, replica: ReplicaPlacement) -> bool:
    """Whether all of the replica is held by exactly those who should; it may stand still."""
    workers = tuple(worker.worker_id for worker in held.roster.workers)
    return workers == replica.worker_ids and held.roster.is_whole and not held.is_broken


def _groups(
    sources: Sequence[HeldReplica],
    targets: Sequence[ReplicaPlacement],
    heirs: Sequence[ReplicaPlacement],
) -> list[_Group]:
    """Collect what shares workers or sessions; an heir in place joins every group it inherits from.

    It binds none of them together: to take sessions in, it need not change.
    """
    parent: dict[str, str] = {}

    def root_of(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(one: str, other: str) -> None:
        parent[max(root_of(one), root_of(other))] = min(root_of(one), root_of(other))

    source_ids = {source.roster.replica_id for source in sources}
    for source in sources:
        for worker in source.roster.workers:
            join(_source_node(source.roster.replica_id), f"worker {worker.worker_id}")
    for target in targets:
        for worker_id in target.worker_ids:
            join(_target_node(target), f"worker {worker_id}")
        for replica_id in target.inherits:
            if replica_id in source_ids:
                join(_target_node(target), _source_node(replica_id))
    groups: dict[str, _Group] = {}
    for source in sources:
        root = root_of(_source_node(source.roster.replica_id))
        groups.setdefault(root, _Group()).sources.append(source)
    for target in targets:
        groups.setdefault(root_of(_target_node(target)), _Group()).targets.append(target)
    for group in groups.values():
        ending = {source.roster.replica_id for source in group.sources}
        group.targets += [heir for heir in heirs if ending.intersection(heir.inherits)]
    return [groups[root] for root in sorted(groups)]


def _source_node(replica_id: str) -> str:
    return f"source {replica_id}"


def _target_node(replica: ReplicaPlacement) -> str:
    return f"target {replica.replica_id}"


def _change(
    group: _Group,
    placement: Placement,
    view: FleetView,
    *,
    in_place: Collection[tuple[str, int]],
    still: Collection[tuple[str, int]],
) -> Change | None:
    """Return the group as a change; None while a target lacks a worker or stands still."""
    targets = []
    for replica in group.targets:
        roster = view.roster_of(replica)
        if not roster.is_whole or (replica.replica_id, replica.replica_epoch) in still:
            return None
        targets.append(
            HandoverTarget(
                replica=roster,
                inherits=replica.inherits,
                is_in_place=(replica.replica_id, replica.replica_epoch) in in_place,
                batch_sequences_max=placement.batch_sequences_max,
            )
        )
    sources = tuple(_source(replica, is_broken=replica.is_broken) for replica in group.sources)
    return Change(sources=sources, targets=tuple(targets))


def _ends_the_last(
    change: Change, placement: Placement, *, in_place: Collection[tuple[str, int]]
) -> bool:
    """Whether nobody would hold the model any more; a policy that loads from disk may do so."""
    return not change.targets and not in_place and not is_from_disk(placement.policy)


def _source(replica: HeldReplica, *, is_broken: bool) -> HandoverSource:
    return HandoverSource(replica=replica.roster, is_lost=is_broken or replica.roster.lead is None)


def _is_free(change: Change, view: FleetView, under_way: Sequence[Handover]) -> bool:
    begun = (target.replica for target in change.targets if not target.is_in_place)
    changing = worker_ids_of((*(source.replica for source in change.sources), *begun))
    in_place = worker_ids_of(target.replica for target in change.targets if target.is_in_place)
    return all(view.is_settled(worker_id) for worker_id in changing | in_place) and not any(
        changing & handover.worker_ids or in_place & handover.changing_worker_ids
        for handover in under_way
    )


def is_wanted(
    sources: Sequence[HandoverSource],
    targets: Sequence[HandoverTarget],
    placement: Placement,
) -> bool:
    """Whether a hand-over that was begun for an earlier placement serves this one, too."""
    placed: Mapping[tuple[str, int], ReplicaPlacement] = {
        (r.replica_id, r.replica_epoch): r for r in placement.replicas
    }
    for source in sources:
        if (source.replica.replica_id, source.replica.replica_epoch) in placed:
            return False
    for target in targets:
        replica = placed.get((target.replica.replica_id, target.replica.replica_epoch))
        workers = tuple(worker.worker_id for worker in target.replica.workers)
        if replica is None or replica.worker_ids != workers:
            return False
    return True

"""The fleet as the planner sees it: reports, notices and silence made one view.

Everything is level: each report tells the whole and replaces the one before, so that a lost or a
doubled one changes nothing. A worker that the committed placement names and nobody has heard yet
counts as living until the echoes say otherwise: a new leader must not take its own ignorance for
the death of others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from libs.contracts.placement import LeavingNode, Placement
from libs.contracts.reports import Market, ReportedPosition, WorkerReport
from libs.engine.parallel.memory_needs import ReplicaMemory
from libs.kernel.bounded import RecentMap
from libs.policy.device_mapping import HeldPosition
from libs.policy.liveness import EchoLiveness
from libs.policy.parallel_config import Workload
from libs.policy.placement_plan import ClusterView, CurrentReplica, UsableWorker
from libs.policy.shapes import ReplicaShape
from services.planner.notices import NoticeBoard
from services.planner.options import PlannerOptions

BREAKS_REMEMBERED_MAX = 256
"""Replicas; one that broke longer ago has long been replaced."""


@dataclass(slots=True)
class _Worker:
    """What a worker said last."""

    report: WorkerReport
    node_id: str
    decisive: tuple[object, ...]
    """What a plan depends on in the report."""


class Fleet:
    """Workers by id, notices by node, and who is alive."""

    def __init__(self, options: PlannerOptions) -> None:
        self._options = options
        self._liveness = EchoLiveness(options.liveness)
        self._workers: dict[str, _Worker] = {}
        self._ids_by_node: dict[str, set[str]] = {}
        self._leaving_ids: set[str] = set()
        """Workers that say themselves that they will end; for membership only."""
        self._unheard_since_break: RecentMap[str, set[str]] = RecentMap(
            entries_max=BREAKS_REMEMBERED_MAX
        )
        self.notices = NoticeBoard(options)
        self.workers_refused = 0
        """Reports of more workers than there is room for."""

    # ------------------------------------------------------------------ what is heard

    def worker_reported(self, report: WorkerReport) -> bool:
        """Note a report; return whether a plan could depend on what is new in it."""
        if report.alias != self._options.alias or not report.is_planned:
            return False
        known = self._workers.get(report.worker_id)
        if known is None and len(self._workers) >= self._options.workers_max:
            self.workers_refused += 1
            return False
        self._liveness.observe_peer(report.worker_id)
        self._note_break(report)
        decisive = _decisive(report)
        if known is not None and known.decisive == decisive:
            known.report = report
            return False
        self._remove(report.worker_id)
        self._add(report, decisive)
        return True

    def echo_heard(self, *, now_ns: int) -> list[str]:
        """Count one own echo; return the workers that are dead now."""
        dead = self._liveness.observe_echo(now_ns=now_ns)
        for worker_id in dead:
            self._remove(worker_id)
        return dead

    def worker_unreachable(self, worker_id: str) -> None:
        """Note that nobody listens for the worker: it is dead if it stays silent a bit longer."""
        self._liveness.observe_unreachable(worker_id)

    def suspects(self) -> list[str]:
        """Return the workers whose silence is worth a question now."""
        return self._liveness.suspects()

    def expect(self, placement: Placement) -> None:
        """Count the silence of whoever is placed, heard or not, from now on."""
        for replica in placement.replicas:
            for worker_id in replica.worker_ids:
                if not self._liveness.is_alive(worker_id):
                    self._liveness.observe_peer(worker_id)

    def unheard(self, placement: Placement) -> list[str]:
        """The placed workers that may live but have not reported yet."""
        return [
            worker_id
            for replica in placement.replicas
            for worker_id in replica.worker_ids
            if worker_id not in self._workers and self._liveness.is_alive(worker_id)
        ]

    @property
    def is_loss_likely(self) -> bool:
        """Whether a replica broke and one of its workers has not been heard since.

        Survivors know of a death within milliseconds, we only by silence: to plan in between would
        place the dead one again.
        """
        return any(self._unheard_since_break.values())

    def _note_break(self, report: WorkerReport) -> None:
        for unheard in self._unheard_since_break.values():
            unheard.discard(report.worker_id)
        position = report.position
        if position is None or not position.is_broken:
            return
        if position.replica_id not in self._unheard_since_break:
            others = {
                worker_id
                for worker_id, other in self._workers.items()
                if other.report.position is not None
                and other.report.position.replica_id == position.replica_id
            }
            self._unheard_since_break.put(position.replica_id, others - {report.worker_id})

    # ------------------------------------------------------------------ what follows from it

    @property
    def node_ids(self) -> list[str]:
        """Nodes with living workers, sorted."""
        return sorted(self._ids_by_node)

    def workers_of(self, node_id: str) -> tuple[str, ...]:
        """The living workers of a node, sorted."""
        return tuple(sorted(self._ids_by_node.get(node_id, ())))

    def is_leaving(self, node_id: str) -> bool:
        """Whether the node was told to end, or a worker of it says so."""
        worker_ids = self._ids_by_node.get(node_id, ())
        return self.notices.is_leaving(node_id) or not self._leaving_ids.isdisjoint(worker_ids)

    def is_living(self, worker_id: str) -> bool:
        """Whether the worker has reported and not fallen silent."""
        return worker_id in self._workers

    def zone_of(self, node_id: str) -> str | None:
        """The node's zone, as its workers say."""
        zones = [self._workers[worker_id].report.zone for worker_id in self.workers_of(node_id)]
        return next((zone for zone in zones if zone is not None), None)

    def is_spot(self, node_id: str) -> bool:
        """Whether the node was bought as spot."""
        return any(
            self._workers[worker_id].report.market is Market.SPOT
            for worker_id in self.workers_of(node_id)
        )

    @property
    def replica_memory(self) -> ReplicaMemory | None:
        """The workers' own arithmetic of memory; None if nobody tells it, or the model is not
        known here. Where workers differ, the one that needs most speaks for all."""
        model = self._options.model
        if model is None:
            return None
        told = dict.fromkeys(
            (report.memory_rule, report.block_tokens, report.context_tokens_max)
            for worker in self._sorted()
            if (report := worker.report).memory_rule is not None
        )
        needs = [
            ReplicaMemory(
                config=model,
                rule=rule,
                block_tokens=block_tokens,
                context_tokens_max=context_tokens_max,
            )
            for rule, block_tokens, context_tokens_max in told
            if rule is not None
        ]
        whole = ReplicaShape(stages=1, shards=1)
        return max(needs, key=lambda each: each.bytes_needed(whole, tokens=0) or 0, default=None)

    @property
    def memory_bytes_min(self) -> int | None:
        """The least memory of any worker that tells; None if none does."""
        told = [w.report.memory_bytes for w in self._workers.values() if w.report.memory_bytes]
        return min(told, default=None)

    @property
    def plan_revision_floor(self) -> int:
        """The latest epoch that any worker computes under."""
        positions = [worker.report.position for worker in self._workers.values()]
        return max((p.replica_epoch for p in positions if p is not None), default=0)

    def leaving_nodes(self, *, now_ns: int, now_unix_ns: int) -> tuple[LeavingNode, ...]:
        """The nodes that will end, with their workers, by id."""
        nodes = []
        for node_id in self.node_ids:
            if not self.is_leaving(node_id):
                continue
            deadline_at_ns = self._deadline_at_ns(node_id, now_ns=now_ns)
            nodes.append(
                LeavingNode(
                    node_id=node_id,
                    worker_ids=self.workers_of(node_id),
                    deadline_at_unix_ns=None
                    if deadline_at_ns is None
                    else max(0, now_unix_ns + deadline_at_ns - now_ns),
                )
            )
        return tuple(nodes)

    def view(self, placement: Placement, *, requests_per_s: float) -> ClusterView:
        """Everything that a plan depends on."""
        leaving = {node_id for node_id in self.node_ids if self.is_leaving(node_id)}
        staying = [w for w in self._sorted() if w.node_id not in leaving]
        rates = [
            rate.bytes_per_s for w in staying for rate in w.report.link_rates if rate.bytes_per_s
        ]
        return ClusterView(
            workers=tuple(
                UsableWorker(
                    worker_id=worker.report.worker_id,
                    node_id=worker.node_id,
                    is_spot=worker.report.market is Market.SPOT,
                    memory_bytes=worker.report.memory_bytes or None,
                    held=_held(worker.report.position),
                )
                for worker in staying
            ),
            replicas=tuple([*self._placed(placement), *self._running_besides(placement)]),
            workload=Workload(requests_per_s=requests_per_s),
            link_bytes_per_s=round(median(rates)) if rates else None,
            memory=self.replica_memory,
        )

    # ------------------------------------------------------------------ replicas

    def _placed(self, placement: Placement) -> list[CurrentReplica]:
        replicas = []
        for placed in placement.replicas:
            members = [w for i in placed.worker_ids if (w := self._workers.get(i)) is not None]
            lead = self._workers.get(placed.lead_worker_id)
            replicas.append(
                CurrentReplica(
                    replica_id=placed.replica_id,
                    replica_epoch=placed.replica_epoch,
                    shape=ReplicaShape(stages=placed.stages, shards=placed.shards),
                    worker_ids=placed.worker_ids,
                    inherits=placed.inherits,
                    kv_tokens=_kv_tokens(lead, placed.replica_id),
                    is_broken=_is_broken(members, placed.replica_id),
                    has_lead=lead is not None,
                    is_whole=len(members) == len(placed.worker_ids),
                )
            )
        return replicas

    def _running_besides(self, placement: Placement) -> list[CurrentReplica]:
        """Replicas that workers still compute although the placement no longer names them."""
        placed = {replica.replica_id for replica in placement.replicas}
        members: dict[str, list[_Worker]] = {}
        for worker in self._sorted():
            position = worker.report.position
            if position is not None and position.replica_id not in placed:
                members.setdefault(position.replica_id, []).append(worker)
        return [_running(replica_id, members[replica_id]) for replica_id in sorted(members)]

    def _sorted(self) -> list[_Worker]:
        return [self._workers[worker_id] for worker_id in sorted(self._workers)]

    def _add(self, report: WorkerReport, decisive: tuple[object, ...]) -> None:
        worker_id, node_id = report.worker_id, _node_id(report)
        self._workers[worker_id] = _Worker(report, node_id, decisive)
        self._ids_by_node.setdefault(node_id, set()).add(worker_id)
        if _is_leaving(report):
            self._leaving_ids.add(worker_id)

    def _remove(self, worker_id: str) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return
        self._leaving_ids.discard(worker_id)
        for unheard in self._unheard_since_break.values():
            unheard.discard(worker_id)
        ids = self._ids_by_node[worker.node_id]
        ids.discard(worker_id)
        if not ids:
            del self._ids_by_node[worker.node_id]

    def _deadline_at_ns(self, node_id: str, *, now_ns: int) -> int | None:
        """The earliest that anybody says; the node's own clock is the one that counts there."""
        said = [self.notices.deadline_at_ns(node_id)]
        for worker_id in self.workers_of(node_id):
            grace_left_ms = self._workers[worker_id].report.grace_left_ms
            said.append(None if grace_left_ms is None else now_ns + grace_left_ms * 1_000_000)
        return min((deadline for deadline in said if deadline is not None), default=None)


def _node_id(report: WorkerReport) -> str:
    """Its node; a worker that names none is a node of its own."""
    return report.node_id or report.worker_id


def _is_leaving(report: WorkerReport) -> bool:
    """Whether the worker says itself that it will end."""
    return report.is_draining or report.grace_left_ms is not None


def _decisive(report: WorkerReport) -> tuple[object, ...]:
    """The parts of a report that a plan depends on; load changes all the time and is none."""
    position = report.position
    return (
        _node_id(report),
        _is_leaving(report),
        report.zone,
        report.market,
        report.memory_bytes,
        None if position is None else (position.replica_id, position.is_broken),
    )


def _held(position: ReportedPosition | None) -> HeldPosition | None:
    if position is None:
        return None
    return HeldPosition(
        replica_id=position.replica_id,
        shape=ReplicaShape(stages=position.stages, shards=position.shards),
        stage=position.stage,
        shard=position.shard,
    )


def _kv_tokens(lead: _Worker | None, replica_id: str) -> int:
    if lead is None or lead.report.position is None:
        return 0
    return lead.report.kv_tokens if lead.report.position.replica_id == replica_id else 0


def _is_broken(members: Sequence[_Worker], replica_id: str) -> bool:
    positions = [worker.report.position for worker in members]
    return any(p is not None and p.replica_id == replica_id and p.is_broken for p in positions)


def _running(replica_id: str, members: Sequence[_Worker]) -> CurrentReplica:
    positions = {
        worker.report.worker_id: position
        for worker in members
        if (position := worker.report.position) is not None
    }
    first = next(iter(positions.values()))
    lead = next(
        (
            worker
            for worker in members
            if (position := positions[worker.report.worker_id]).shard == 0
            and position.stage == position.stages - 1
        ),
        None,
    )
    return CurrentReplica(
        replica_id=replica_id,
        replica_epoch=first.replica_epoch,
        shape=ReplicaShape(stages=first.stages, shards=first.shards),
        worker_ids=tuple(positions),
        kv_tokens=_kv_tokens(lead, replica_id),
        is_placed=False,
        is_broken=_is_broken(members, replica_id),
        has_lead=lead is not None,
        is_whole=len(positions) == first.stages * first.shards,
    )

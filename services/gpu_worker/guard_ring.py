"""Which replica guards this one: put together from what workers report of themselves.

    reports --every position heard lately--> whole replicas --no node in common--> those that fit
    those that fit, by their leads' ids, in a ring: the next one behind this worker

So each replica guards one other, whatever their shapes. A node that dies takes all its workers: a
replica fits only if none of its workers shares a node with any worker of the guarded one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from libs.contracts.reports import ReportedPosition, WorkerReport
from libs.kernel.bounded import RecentMap
from services.gpu_worker.options import WorkerOptions

PEERS_MAX = 1024
"""Workers whose reports are remembered, the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    report: WorkerReport
    position: ReportedPosition
    at_ns: int


class GuardRing:
    """The other workers of this model, as they were heard last."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._heard: RecentMap[str, _Heard | None] = RecentMap(entries_max=PEERS_MAX)
        """None: it lives and holds nothing."""

    def hear(self, report: WorkerReport, *, now_ns: int) -> None:
        """Note what another worker says of itself."""
        options, position = self._options, report.position
        if report.worker_id == options.worker_id or report.alias != options.alias:
            return
        heard = None
        if position is not None:
            heard = _Heard(report=report, position=position, at_ns=now_ns)
        self._heard.put(report.worker_id, heard)

    def choose(self, guarded: ReplicaRoster, *, now_ns: int) -> ReplicaRoster | None:
        """Return the next replica behind this worker that could go on if this one's nodes die."""
        nodes = self._nodes_of(guarded)
        if nodes is None:
            return None
        fits: dict[str, list[_Heard]] = {}
        for workers in self._replicas(now_ns):
            lead = _lead_of(workers)
            is_apart = nodes.isdisjoint(worker.report.node_id for worker in workers)
            if lead is not None and lead.is_serving and is_apart and _is_whole(workers):
                fits[lead.worker_id] = workers
        behind = [lead_id for lead_id in sorted(fits) if lead_id > self._options.worker_id]
        chosen = behind or sorted(fits)
        return _roster_of(fits[chosen[0]]) if chosen else None

    def _nodes_of(self, guarded: ReplicaRoster) -> set[str | None] | None:
        """Return the nodes of a replica; None while some worker of it was never heard."""
        nodes = {self._options.node_id}
        for worker in guarded.workers:
            if worker.worker_id == self._options.worker_id:
                continue
            heard = self._heard.get(worker.worker_id)
            if heard is None:
                return None
            nodes.add(heard.report.node_id)
        return nodes

    def _replicas(self, now_ns: int) -> Iterable[list[_Heard]]:
        """Group those that are fit to guard by the replica that they are a part of."""
        replicas: dict[tuple[str, int], list[_Heard]] = {}
        for heard in self._heard.values():
            if heard is not None and self._is_fit(heard, now_ns):
                name = (heard.position.replica_id, heard.position.replica_epoch)
                replicas.setdefault(name, []).append(heard)
        return replicas.values()

    def _is_fit(self, heard: _Heard, now_ns: int) -> bool:
        options, report = self._options, heard.report
        return (
            now_ns - heard.at_ns < options.guard_silence_ns_max
            and report.node_id is not None
            and report.grace_left_ms is None
            and not report.is_draining
            and not heard.position.is_broken
            and report.block_tokens == options.engine.block_tokens
        )


def _lead_of(workers: list[_Heard]) -> WorkerReport | None:
    for heard in workers:
        if heard.position.stage == heard.position.stages - 1 and heard.position.shard == 0:
            return heard.report
    return None


def _is_whole(workers: list[_Heard]) -> bool:
    places = {(heard.position.stage, heard.position.shard) for heard in workers}
    return len(places) == workers[0].position.stages * workers[0].position.shards


def _roster_of(workers: list[_Heard]) -> ReplicaRoster:
    """Return what these workers, all of one replica, say that it is."""
    position = workers[0].position
    placed = [
        PlacedWorker(
            worker_id=heard.report.worker_id,
            peer_address=heard.report.peer_address,
            stage=heard.position.stage,
            shard=heard.position.shard,
        )
        for heard in workers
    ]
    return ReplicaRoster(
        replica_id=position.replica_id,
        replica_epoch=position.replica_epoch,
        stages=position.stages,
        shards=position.shards,
        workers=tuple(sorted(placed, key=lambda worker: (worker.stage, worker.shard))),
    )

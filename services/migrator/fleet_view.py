"""What the fleet is, by its own reports: who lives, who holds which position, who ends when.

Only workers that compute what a placement says take part; a worker that serves a whole model by
itself is none of the migrator's business.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from libs.contracts.placement import LeavingNode, ReplicaPlacement
from libs.contracts.reports import WorkerReport
from libs.kernel.units import NS_PER_MS
from libs.policy.liveness import EchoLiveness
from services.migrator.options import MigratorOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldReplica:
    """A replica as the workers that still hold a part of it report it."""

    roster: ReplicaRoster
    """Of the living; in the order of ranks."""
    is_broken: bool
    is_serving: bool
    """Its lead lives and takes sessions."""

    @property
    def name(self) -> tuple[str, int]:
        """Id and epoch; two groups of one id differ by the epoch."""
        return self.roster.replica_id, self.roster.replica_epoch


@dataclass(slots=True, kw_only=True)
class _WorkerView:
    report: WorkerReport
    heard_at_ns: int
    reports_settled: int = 0
    """Reports since something was last done to the worker."""


class FleetView:
    """The living workers of one alias, each with its latest report."""

    def __init__(self, options: MigratorOptions) -> None:
        self._options = options
        self._liveness = EchoLiveness(options.liveness)
        self._workers: dict[str, _WorkerView] = {}
        self._leaving_at_unix_ns: Mapping[str, int | None] = {}
        self._replicas: list[HeldReplica] | None = None
        """Worked out from the reports; None: to be worked out again."""

    def observe(self, report: WorkerReport, *, now_ns: int) -> bool:
        """Take a report; return whether the worker lost what it held since the one before."""
        if report.alias != self._options.alias or not report.is_planned:
            return False
        self._liveness.observe_peer(report.worker_id)
        view = self._workers.get(report.worker_id)
        if view is None:
            self._replicas = None
            self._workers[report.worker_id] = _WorkerView(
                report=report, heard_at_ns=now_ns, reports_settled=1
            )
            return False
        is_restarted = report.process_id != view.report.process_id
        if report.beat <= view.report.beat and not is_restarted:
            return False
        if _shape(report) != _shape(view.report):
            self._replicas = None
        view.report = report
        view.heard_at_ns = now_ns
        view.reports_settled = 1 if is_restarted else view.reports_settled + 1
        return is_restarted

    def observe_echo(self, *, now_ns: int) -> list[str]:
        """Count one echo of ours against all; return the workers that are dead now, sorted."""
        dead = self._liveness.observe_echo(now_ns=now_ns)
        for worker_id in dead:
            self._replicas = None
            self._workers.pop(worker_id, None)
        return dead

    def observe_unreachable(self, worker_id: str) -> None:
        """Note that nobody listens for the worker: it is dead if it stays silent a bit longer."""
        self._liveness.observe_unreachable(worker_id)

    def suspects(self) -> list[str]:
        """Return the workers whose silence is worth a question now."""
        return self._liveness.suspects()

    def observe_leaving(self, leaving: Iterable[LeavingNode]) -> None:
        """Take what the placement says of nodes that end."""
        self._replicas = None
        self._leaving_at_unix_ns = {
            worker_id: node.deadline_at_unix_ns for node in leaving for worker_id in node.worker_ids
        }

    def disturb(self, worker_ids: Iterable[str]) -> None:
        """Note that these workers were changed: what they reported before counts no more."""
        for worker_id in worker_ids:
            if worker_id in self._workers:
                self._workers[worker_id].reports_settled = 0

    def is_alive(self, worker_id: str) -> bool:
        """Whether the worker is heard of."""
        return worker_id in self._workers

    def dead_among(self, worker_ids: frozenset[str]) -> frozenset[str]:
        """Return those of these workers that are not heard of."""
        return worker_ids.difference(self._workers)

    def is_settled(self, worker_id: str) -> bool:
        """Whether what the worker reports is later than what was done to it."""
        view = self._workers.get(worker_id)
        return view is not None and view.reports_settled >= self._options.reports_settled

    def report_of(self, worker_id: str) -> WorkerReport | None:
        """Return the latest report of a living worker."""
        view = self._workers.get(worker_id)
        return None if view is None else view.report

    def worker_ids(self) -> list[str]:
        """Return the living, sorted."""
        return sorted(self._workers)

    def first_end_at_ns(
        self, workers: Iterable[PlacedWorker], *, now_ns: int, now_unix_ns: int
    ) -> int | None:
        """Return when the first of the living workers' nodes ends, on our clock; None if all stay
        or nobody says.

        The node's own clock counts most, because it is the one that is obeyed.
        """
        ends = []
        for worker in workers:
            view = self._workers.get(worker.worker_id)
            if view is None:
                continue
            grace_left_ms = view.report.grace_left_ms
            at_unix_ns = self._leaving_at_unix_ns.get(worker.worker_id)
            if grace_left_ms is not None:
                ends.append(view.heard_at_ns + grace_left_ms * NS_PER_MS)
            elif at_unix_ns is not None:
                ends.append(now_ns + at_unix_ns - now_unix_ns)
        return min(ends, default=None)

    def is_leaving(self, worker_id: str) -> bool:
        """Whether the worker's node has been told to end."""
        report = self.report_of(worker_id)
        has_grace = report is not None and report.grace_left_ms is not None
        return has_grace or worker_id in self._leaving_at_unix_ns

    def roster_of(self, replica: ReplicaPlacement) -> ReplicaRoster:
        """Return the placed replica with its living workers."""
        placed = [
            self._placed(worker_id, rank // replica.shards, rank % replica.shards)
            for rank, worker_id in enumerate(replica.worker_ids)
            if worker_id in self._workers
        ]
        return ReplicaRoster(
            replica_id=replica.replica_id,
            replica_epoch=replica.replica_epoch,
            stages=replica.stages,
            shards=replica.shards,
            workers=tuple(placed),
        )

    def without_dead(self, roster: ReplicaRoster) -> ReplicaRoster:
        """Return the roster with those that live."""
        living = tuple(w for w in roster.workers if w.worker_id in self._workers)
        return roster if len(living) == len(roster.workers) else _with_workers(roster, living)

    def replicas(self) -> list[HeldReplica]:
        """Return every replica that somebody reports to hold a part of, sorted by name."""
        if self._replicas is None:
            held: dict[tuple[str, int], list[WorkerReport]] = {}
            for worker_id in sorted(self._workers):
                report = self._workers[worker_id].report
                if report.position is not None:
                    name = (report.position.replica_id, report.position.replica_epoch)
                    held.setdefault(name, []).append(report)
            self._replicas = [self._replica(held[name]) for name in sorted(held)]
        return self._replicas

    def _replica(self, reports: list[WorkerReport]) -> HeldReplica:
        first = reports[0].position
        assert first is not None
        placed = [
            self._placed(report.worker_id, report.position.stage, report.position.shard)
            for report in reports
            if report.position is not None
        ]
        roster = ReplicaRoster(
            replica_id=first.replica_id,
            replica_epoch=first.replica_epoch,
            stages=first.stages,
            shards=first.shards,
            workers=tuple(sorted(placed, key=lambda w: (w.stage, w.shard, w.worker_id))),
        )
        return HeldReplica(
            roster=roster,
            is_broken=any(r.position is not None and r.position.is_broken for r in reports),
            is_serving=any(r.is_serving for r in reports),
        )

    def _placed(self, worker_id: str, stage: int, shard: int) -> PlacedWorker:
        return PlacedWorker(
            worker_id=worker_id,
            peer_address=self._workers[worker_id].report.peer_address,
            stage=stage,
            shard=shard,
            is_leaving=self.is_leaving(worker_id),
        )


def _shape(report: WorkerReport) -> tuple[object, ...]:
    """Return what of a report a replica is worked out from."""
    is_leaving = report.grace_left_ms is not None
    return report.position, report.is_serving, report.peer_address, is_leaving


def _with_workers(roster: ReplicaRoster, workers: tuple[PlacedWorker, ...]) -> ReplicaRoster:
    return roster.model_copy(update={"workers": workers})

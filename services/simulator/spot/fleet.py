"""The simulated fleet: nodes, workers, replicas, and requests between them."""

import math
from collections.abc import Callable
from itertools import pairwise

from libs.contracts.handover import LoadWeights, ReplicaRoster, ToMigrator, WeightsFrom
from libs.contracts.placement import CapacityWanted, Policy
from libs.contracts.preemption import PreemptionNotice
from libs.contracts.reports import ReportedPosition, RouterReport
from libs.kernel.units import NS_PER_S, seconds
from libs.policy.cost_model import BatchTimes, batch_times, best_parts, weight_bytes_max
from libs.policy.liveness import LivenessOptions
from libs.policy.shapes import ReplicaShape
from libs.sim.world import World
from services.migrator.options import MigratorOptions
from services.planner.options import ECHOES_MISSED_MAX, PlannerOptions
from services.preemption_watcher.commands import TellWorkers
from services.simulator.spot.batch_engine import BatchEngine
from services.simulator.spot.continuous_engine import ContinuousEngine
from services.simulator.spot.control import ControlPlane, NodeWatcher
from services.simulator.spot.copying import KvCopies
from services.simulator.spot.counting_engine import CountingEngine
from services.simulator.spot.engine import ReplicaEngine
from services.simulator.spot.event_log import EventLog
from services.simulator.spot.front_door import FifoDoor, FrontDoor, RoutedDoor
from services.simulator.spot.options import EngineKind, SpotRunOptions
from services.simulator.spot.replica import SimReplica
from services.simulator.spot.trace import NodeSpan
from services.simulator.spot.transfers import (
    LoadedBytes,
    Placed,
    Traffic,
    disk_traffic,
    weight_traffic,
)
from services.simulator.spot.work import SimRequest, Work
from services.simulator.spot.worker import ALIAS, SimWorker

OnFinished = Callable[[SimRequest], None]
OnCapacityWanted = Callable[[CapacityWanted], None]
NEVER_NS = 10**18
"""No silence is an outage: rounds may be seconds apart, and nothing is lost on the way."""


class SpotFleet:
    """Everything that runs, and what happens between its parts."""

    def __init__(
        self,
        world: World,
        options: SpotRunOptions,
        *,
        on_finished: OnFinished | None = None,
    ) -> None:
        """`on_finished` takes the requests instead of the list of those that are finished."""
        self.world = world
        self.options = options
        self.hardware = options.hardware
        restart = options.hardware.restart
        self.restart_ns = restart.engine_ns + restart.group_ns
        if options.policy is Policy.REPARALLELIZE:
            self.restart_ns += restart.daemons_ns
        self.log = EventLog(world)
        self.copies = KvCopies(
            world, self.log, hardware=options.hardware, size=options.profile.size
        )
        self.control = ControlPlane(
            world,
            self.log,
            self,
            planner=_planner_options(options),
            migrator=_migrator_options(options),
            pace=options.pace,
        )
        self.door: FrontDoor = (
            FifoDoor(self.serving, batch_max=options.batch_max, batches_ahead=options.batches_ahead)
            if options.engine is EngineKind.PAPER
            else RoutedDoor(self.serving, lambda r: self._workers[r.lead_id].load_report())
        )
        self.finished: list[SimRequest] = []
        self._on_finished = on_finished or self.finished.append
        self.on_capacity_wanted: OnCapacityWanted | None = None
        """Who provides nodes; None: they come and go as the trace says."""
        self.accepted = 0
        self.begins_at_ns = 0
        """When the trace began; before, the fleet warms up."""
        self._context_tokens_max = max(
            (a.prompt_tokens + a.output_tokens for a in options.arrivals),
            default=options.profile.session_tokens,
        )
        self.weight_bytes_from_peers = 0
        self.weight_bytes_from_disk = 0
        self.plan_revision_reached = 0
        self._workers: dict[str, SimWorker] = {}
        self._watchers: dict[str, NodeWatcher] = {}
        self._replicas: dict[str, SimReplica] = {}
        self._routes: dict[tuple[str, WeightsFrom], tuple[Traffic, dict[str, LoadedBytes]]] = {}
        self._weight_bytes: dict[tuple[int, int], int] = {}
        self._workers_started = 0
        self._beat = 0
        self._times: dict[tuple[ReplicaShape, int, int], BatchTimes] = {}

    # ------------------------------------------------------------------ nodes

    def add_node(self, span: NodeSpan) -> None:
        """A node can be used: its workers and its watcher start."""
        self.log.add(span.node_id, "comes")
        for index in range(self.hardware.gpus_per_node):
            self._workers_started += 1
            worker = SimWorker(
                self.world, self, self.copies, worker_id=f"{span.node_id}-gpu-{index}",
                span=span, number=self._workers_started,
            )  # fmt: skip
            self._workers[worker.name] = worker
        watcher = NodeWatcher(
            self.world, node_id=span.node_id, on_notice=self._noticed, on_told=self._tell_workers
        )
        self._watchers[span.node_id] = watcher
        watcher.begin()
        self.control.wake()

    def warn_node(self, node_id: str, *, ends_at_ns: int) -> None:
        """The cloud says that the node will end."""
        self.log.add(node_id, "has notice")
        self._watchers[node_id].end_at(ends_at_ns)
        self.control.wake()

    def end_node(self, node_id: str) -> None:
        """The node is gone, and whatever was on it."""
        self.log.add(node_id, "ends")
        self._watchers.pop(node_id).kill()
        for worker in [w for w in self._workers.values() if w.node_id == node_id]:
            worker.kill()
            del self._workers[worker.name]
            self._lose_worker(worker.name)
        self.control.wake()

    def _noticed(self, notice: PreemptionNotice) -> None:
        self.control.noticed(notice)

    def _tell_workers(self, command: TellWorkers) -> None:
        for notice in command.notices:
            for worker in self.living_workers():
                if worker.node_id == notice.node_id:
                    worker.hear(notice)

    def _lose_worker(self, worker_id: str) -> None:
        for replica in list(self._replicas.values()):
            if replica.is_broken or all(p.worker_id != worker_id for p in replica.placed):
                continue
            held = replica.engine.held()
            if replica.is_serving or held:
                lost = replica.break_up()
                self.log.add(
                    replica.replica_id, "breaks", worker=worker_id,
                    requests=tuple(r.request_id for work in lost for r in work.requests),
                )  # fmt: skip
                self.door.put_back(lost)
            elif worker_id in replica.members_active:
                replica.is_broken = True

    # ------------------------------------------------------------------ for the control plane

    def living_workers(self) -> list[SimWorker]:
        """All that run, by id."""
        return [self._workers[worker_id] for worker_id in sorted(self._workers)]

    def find_worker(self, worker_id: str) -> SimWorker | None:
        """The worker of this id, if it runs."""
        return self._workers.get(worker_id)

    def router_report(self) -> RouterReport | None:
        """What has been accepted, where the planner measures demand."""
        if self.options.demand_steps:
            accepted = self._told()
        elif self.options.is_demand_measured:
            accepted = self.accepted
        else:
            return None
        self._beat += 1
        return RouterReport(
            router_id="router-1",
            beat=self._beat,
            journal_id="journal-1",
            process_id=1,
            sessions_open=self.door.requests_waiting,
            sessions_accepted=accepted,
        )

    def _told(self) -> int:
        """Count what would have arrived if the demand that the trace tells were met exactly."""
        now_ns = self.world.now_ns - self.begins_at_ns
        total = 0.0
        steps = [*self.options.demand_steps, (now_ns, 0.0)]
        for (at_ns, rate), (until_ns, _) in pairwise(steps):
            total += rate * seconds(max(0, min(until_ns, now_ns) - at_ns))
        return math.ceil(total)

    def capacity_wanted(self, wish: CapacityWanted) -> None:
        """Pass on what the planner would like to have."""
        if self.on_capacity_wanted is not None:
            self.on_capacity_wanted(wish)

    def placement_reached(self, plan_revision: int) -> None:
        """The fleet has the committed shape."""
        self.plan_revision_reached = plan_revision

    # ------------------------------------------------------------------ for workers

    def replica_of(self, roster: ReplicaRoster) -> SimReplica:
        """Return the replica of this roster, made if it is new."""
        if roster.replica_id not in self._replicas:
            owner = _Owner(self, roster.replica_id)
            shape = ReplicaShape(stages=roster.stages, shards=roster.shards)
            self._replicas[roster.replica_id] = SimReplica(
                roster=roster, placed=self._placed(roster), engine=self._engine(owner, shape)
            )
        return self._replicas[roster.replica_id]

    def weight_bytes(self, position: ReportedPosition) -> int:
        """Return what the weights of a position come to, at most."""
        key = (position.stages, position.shards)
        if key not in self._weight_bytes:
            shape = ReplicaShape(stages=position.stages, shards=position.shards)
            self._weight_bytes[key] = weight_bytes_max(self.options.profile, shape)
        return self._weight_bytes[key]

    def find_replica(self, replica_id: str) -> SimReplica | None:
        """Return the replica of this id, if it is known."""
        return self._replicas.get(replica_id)

    def routes(self, order: LoadWeights) -> tuple[Traffic, dict[str, LoadedBytes]]:
        """Return what all targets of the hand-over load from where; the same for each of them."""
        key = (order.op_id.rsplit("-t", 1)[0], order.weights_from)
        if key not in self._routes:
            size = self.options.profile.size
            targets = [placed for roster in order.targets for placed in self._placed(roster)]
            if order.weights_from is WeightsFrom.DISK:
                traffic, loaded = disk_traffic(size, targets)
            else:
                holders = [placed for roster in order.holders for placed in self._placed(roster)]
                traffic, loaded = weight_traffic(size, holders=holders, targets=targets)
            self.weight_bytes_from_peers += sum(part.from_peers for part in loaded.values())
            self.weight_bytes_from_disk += sum(part.from_disk for part in loaded.values())
            self.log.add(
                order.handover_id, "loads", source=order.weights_from.value,
                gb=round(sum(p.planned - p.kept for p in loaded.values()) / 1e9, 1),
                duration_s=round(traffic.duration_ns(self.hardware) / NS_PER_S, 3),
            )  # fmt: skip
            self._routes[key] = (traffic, loaded)
        return self._routes[key]

    def answered(self, answer: ToMigrator) -> None:
        """Carry an answer to the migrator."""
        self.control.answered(answer)

    def serves(self, replica: SimReplica) -> None:
        """Let a replica that takes sessions have those that wait."""
        self.log.add(
            replica.replica_id, "serves", shape=f"{replica.shape.stages}x{replica.shape.shards}"
        )
        self.door.offer(replica)

    def release(self, replica: SimReplica, heirs: tuple[str, ...]) -> int:
        """Let the sessions of a replica go on at these leads."""
        works = replica.engine.take()
        leads = {r.lead_id: r for r in self._replicas.values() if r.is_serving}
        targets = [leads[lead_id] for lead_id in heirs if lead_id in leads]
        lost = []
        for index, work in enumerate(works):
            copied = replica.tokens_copied.get(work.name, 0)
            if targets and (copied or self.options.engine is not EngineKind.PAPER):
                self._note_lost(work, kept=copied)
                work.kv_tokens = min(work.kv_tokens, copied)
                targets[index % len(targets)].engine.add(work)
            else:
                lost.append(work)
        self.log.add(
            replica.replica_id, "is released",
            moved=tuple(w.name for w in works if w not in lost),
            lost=tuple(w.name for w in lost),
        )  # fmt: skip
        self.door.put_back(lost)
        return sum(len(work.requests) for work in works)

    def dropped(self, replica: SimReplica) -> None:
        """Forget a replica that nobody holds any more."""
        self.log.add(replica.replica_id, "is dropped")
        works = replica.engine.held()
        if replica.is_serving or works:
            replica.is_serving = False
            replica.engine.halt()
            self.door.put_back(replica.engine.take())
        self._replicas.pop(replica.replica_id, None)

    # ------------------------------------------------------------------ requests

    def begin_trace(self) -> None:
        """The fleet is warm: from now on things count."""
        self.begins_at_ns = self.world.now_ns
        self.weight_bytes_from_peers = self.weight_bytes_from_disk = 0
        self.log.add("run", "trace begins", replicas=tuple(r.replica_id for r in self.serving()))

    def arrive(self, request: SimRequest) -> None:
        """A request comes in."""
        self.accepted += 1
        self.door.arrive(request)

    def serving(self) -> list[SimReplica]:
        """Replicas that take sessions, by id."""
        return [r for _, r in sorted(self._replicas.items()) if r.is_serving]

    def request_finished(self, request: SimRequest) -> None:
        """A request's last token is there."""
        self._on_finished(request)
        self.world.note(f"{request.request_id} finished")

    @staticmethod
    def _note_lost(work: Work, *, kept: int) -> None:
        missing = max(0, work.kv_tokens - kept)
        if missing:
            work.requests[0].tokens_recomputed += missing

    # ------------------------------------------------------------------ engines

    def _engine(self, owner: "_Owner", shape: ReplicaShape) -> ReplicaEngine:
        if self.options.engine is EngineKind.PAPER:
            return BatchEngine(
                self.world, owner, lambda count, tokens: self._batch_times(shape, count, tokens),
                batch_max=self.options.batch_max,
            )  # fmt: skip
        if self.options.engine is EngineKind.COUNTED:
            return CountingEngine(
                self.world, owner, profile=self.options.profile, shape=shape,
                sequences_max=self.options.batch_max, step_tokens_max=self.options.step_tokens_max,
            )  # fmt: skip
        return ContinuousEngine(
            self.world, owner, profile=self.options.profile, shape=shape,
            sequences_max=self.options.batch_max, step_tokens_max=self.options.step_tokens_max,
            context_tokens_max=self._context_tokens_max,
        )  # fmt: skip

    def _batch_times(self, shape: ReplicaShape, count: int, prompt_tokens: int) -> BatchTimes:
        key = (shape, count, prompt_tokens)
        if key not in self._times:
            self._times[key] = batch_times(
                self.options.profile,
                shape,
                batch=count,
                prompt_tokens=prompt_tokens,
                parts=best_parts(self.options.profile, shape, batch=self.options.batch_max),
            )
        return self._times[key]

    def _placed(self, roster: ReplicaRoster) -> tuple[Placed, ...]:
        shape = ReplicaShape(stages=roster.stages, shards=roster.shards)
        return tuple(
            Placed(
                worker_id=worker.worker_id,
                node_id=worker.worker_id.rsplit("-gpu-", 1)[0],
                shape=shape,
                stage=worker.stage,
                shard=worker.shard,
            )
            for worker in roster.workers
        )


class _Owner:
    """Hears of what the engine of one replica does."""

    def __init__(self, fleet: SpotFleet, replica_id: str) -> None:
        self._fleet = fleet
        self._replica_id = replica_id

    def request_finished(self, request: SimRequest) -> None:
        """See EngineOwner."""
        self._fleet.request_finished(request)

    def engine_idle(self) -> None:
        """See EngineOwner."""
        replica = self._fleet.find_replica(self._replica_id)
        if replica is not None and replica.is_serving:
            self._fleet.door.offer(replica)


def _planner_options(options: SpotRunOptions) -> PlannerOptions:
    return PlannerOptions(
        planner_id="planner-1",
        alias=ALIAS,
        profile=options.profile,
        plan=options.plan,
        capacity=options.capacity,
        rate_window_ns=options.rate_window_ns,
        requests_per_s_min=options.requests_per_s_target,
        liveness=_liveness(ECHOES_MISSED_MAX),
    )


def _migrator_options(options: SpotRunOptions) -> MigratorOptions:
    profile = options.profile
    shape = ReplicaShape(stages=1, shards=min(profile.times_by_shards))
    prefill_ns = batch_times(profile, shape, batch=1).prefill_ns
    return MigratorOptions(
        migrator_id="migrator-1",
        alias=ALIAS,
        echo_age_max_ns=NEVER_NS,
        activation_ns=options.hardware.group_setup_ns,
        link_bytes_per_s=options.hardware.network_bytes_per_s,
        prefill_tokens_per_s=max(1, profile.prompt_tokens * NS_PER_S // prefill_ns),
        model_bytes=profile.size,
        liveness=_liveness(LivenessOptions().echoes_missed_max),
    )


def _liveness(echoes_missed_max: int) -> LivenessOptions:
    return LivenessOptions(echoes_missed_max=echoes_missed_max, outage_ns=NEVER_NS)

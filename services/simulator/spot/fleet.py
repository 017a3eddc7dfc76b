"""The simulated fleet: nodes, workers, replicas, and requests between them."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from libs.contracts.handover import LoadWeights, ReplicaRoster, ToMigrator, WeightsFrom
from libs.contracts.placement import Policy
from libs.contracts.preemption import PreemptionNotice
from libs.contracts.reports import ReportedPosition, RouterReport, WorkerReport
from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S, seconds
from libs.policy.cost_model import BatchTimes, batch_times, best_parts, weight_bytes_max
from libs.policy.shapes import ReplicaShape
from libs.sim.world import World
from services.planner.commands import PublishCapacity
from services.simulator.spot.batch_engine import BatchEngine
from services.simulator.spot.continuous_engine import ContinuousEngine
from services.simulator.spot.control import ControlPlane
from services.simulator.spot.copying import KvCopies
from services.simulator.spot.core_options import migrator_options, planner_options
from services.simulator.spot.counting_engine import CountingEngine
from services.simulator.spot.engine import ReplicaEngine
from services.simulator.spot.event_log import EventLog
from services.simulator.spot.front_door import FifoDoor, FrontDoor, RoutedDoor
from services.simulator.spot.market import NodeMarket, SpotMarket
from services.simulator.spot.nodes import Nodes
from services.simulator.spot.options import BLOCK_TOKENS, EngineKind, SpotRunOptions
from services.simulator.spot.replica import SimReplica
from services.simulator.spot.transfers import (
    LoadedBytes,
    Placed,
    Traffic,
    disk_traffic,
    weight_traffic,
)
from services.simulator.spot.work import SimRequest, Work
from services.simulator.spot.worker import SimWorker

OnFinished = Callable[[SimRequest], None]
MakeMarket = Callable[[World, Nodes, SpotRunOptions], NodeMarket]


class SpotFleet:
    """Everything that runs, and what happens between its parts."""

    def __init__(
        self,
        world: World,
        options: SpotRunOptions,
        *,
        make_market: MakeMarket = SpotMarket,
        on_finished: OnFinished | None = None,
    ) -> None:
        """`make_market` is asked where the planner may ask for nodes; `on_finished` takes the
        requests instead of the list of those that are finished."""
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
        self.nodes = Nodes(world, self.log, self, self.copies, options=options)
        self.market = None if options.capacity is None else make_market(world, self.nodes, options)
        self.control = ControlPlane(
            world,
            self.log,
            self,
            planner=planner_options(options),
            migrator=migrator_options(options),
            pace=options.pace,
        )
        self.door: FrontDoor = (
            FifoDoor(self.serving, batch_max=options.batch_max, batches_ahead=options.batches_ahead)
            if options.engine is EngineKind.PAPER
            else RoutedDoor(world, self.serving, self._report_of_lead)
        )
        self.finished: list[SimRequest] = []
        self._on_finished = on_finished or self.finished.append
        self.accepted = 0
        self.begins_at_ns = 0
        """When the trace began; before, the fleet warms up."""
        self._memory = options.memory
        self._context_tokens_max = options.context_tokens_max
        self.weight_bytes_from_peers = 0
        self.weight_bytes_from_disk = 0
        self.plan_revision_reached = 0
        self._replicas: dict[str, SimReplica] = {}
        self._routes: dict[tuple[str, WeightsFrom], tuple[Traffic, dict[str, LoadedBytes]]] = {}
        self._weight_bytes: dict[tuple[int, int], int] = {}
        self._beat = 0
        self._times: dict[tuple[ReplicaShape, int, int], BatchTimes] = {}

    # ------------------------------------------------------------------ nodes

    def notice_heard(self, notice: PreemptionNotice) -> None:
        """Carry a watcher's notice to the planner."""
        self.control.noticed(notice)

    def nodes_changed(self, lost: Sequence[SimWorker] = ()) -> None:
        """Nodes came, were told to end, or are gone with these workers."""
        put_back: list[Work] = []
        for worker in lost:
            put_back += self._lose_worker(worker.name)
        if put_back:  # all that broke is broken by now: nothing goes back to any of it
            self.door.put_back(put_back)
        self.control.wake()

    def capacity_wanted(self, capacity: PublishCapacity) -> None:
        """Let the market, if nodes are had from one, follow the planner's wish."""
        if self.market is not None:
            self.market.provide(capacity)

    def _lose_worker(self, worker_id: str) -> list[Work]:
        """Break what the worker was part of; return what was under way there."""
        put_back: list[Work] = []
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
                put_back += lost
            elif worker_id in replica.members_active:
                replica.is_broken = True
        return put_back

    # ------------------------------------------------------------------ for the control plane

    def living_workers(self) -> list[SimWorker]:
        """All that run, by id."""
        return self.nodes.workers()

    def find_worker(self, worker_id: str) -> SimWorker | None:
        """The worker of this id, if it runs."""
        return self.nodes.find_worker(worker_id)

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
        self.door.offer()

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
        if self.market is not None:
            self.market.begin_trace()
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
        self.door.answered()
        self.world.note(f"{request.request_id} finished")

    @staticmethod
    def _note_lost(work: Work, *, kept: int) -> None:
        missing = max(0, work.kv_tokens - kept)
        if missing:
            work.requests[0].tokens_recomputed += missing

    def _report_of_lead(self, replica: SimReplica) -> WorkerReport:
        lead = self.nodes.find_worker(replica.lead_id)
        assert lead is not None, "a replica whose lead is gone takes no sessions"
        return lead.load_report()

    # ------------------------------------------------------------------ engines

    def _engine(self, owner: "_Owner", shape: ReplicaShape) -> ReplicaEngine:
        if self.options.engine is EngineKind.PAPER:
            return BatchEngine(
                self.world, owner, lambda count, tokens: self._batch_times(shape, count, tokens),
                batch_max=self.options.batch_max,
            )  # fmt: skip
        if self.options.engine is EngineKind.COUNTED:
            self._check_pool(shape)
            return CountingEngine(
                self.world, owner, profile=self.options.profile, shape=shape,
                sequences_max=self.options.batch_max, step_tokens_max=self.options.step_tokens_max,
                prefill_chunks=self.options.prefill_chunks,
            )  # fmt: skip
        return ContinuousEngine(
            self.world, owner, profile=self.options.profile, shape=shape,
            sequences_max=self.options.batch_max, step_tokens_max=self.options.step_tokens_max,
            context_tokens_max=self._context_tokens_max,
            prefill_chunks=self.options.prefill_chunks, kv_blocks_max=self._kv_blocks(shape),
        )  # fmt: skip

    def _check_pool(self, shape: ReplicaShape) -> None:
        """Refuse to count where blocks could run out: then who waits depends on them."""
        blocks = self._kv_blocks(shape)
        of_sequence = -(-self.options.context_tokens_max // BLOCK_TOKENS) + 1
        if blocks is not None and blocks < self.options.batch_max * of_sequence:
            raise ConfigError(
                f"engine: {shape.stages}x{shape.shards} has {blocks} blocks of KV, too few to be "
                "counted; use continuous"
            )

    def _kv_blocks(self, shape: ReplicaShape) -> int | None:
        """Return the blocks for which a replica's workers have room; None: any number."""
        if self._memory is None:
            return None
        memory_bytes = self.hardware.gpu_bytes - self.options.plan.search.workspace_bytes
        return self._memory.blocks_that_fit(shape, memory_bytes=memory_bytes)

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
            self._fleet.door.offer()

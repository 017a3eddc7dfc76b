"""The simulated fleet: processes by role, their replacement, and the faults that befall them."""

from libs.contracts.subjects import CLAIM_BUCKET
from libs.engine.scheduler import SchedulerOptions
from libs.engine.scheduling.coserve import CoserveOptions
from libs.engine.simulated_runner import StepTimeModel
from libs.kernel.units import NS_PER_MS
from libs.runtime.memory_broker import MemoryBroker
from libs.sim.broker import SimBroker
from libs.sim.process import Life, SimProcess
from libs.sim.world import Action, World
from services.gpu_worker.options import WorkerOptions
from services.online_router.options import RouterOptions
from services.online_router.ports import CLAIM_AGE_MAX_NS, CLAIM_BYTES_MAX, JOURNAL_OPTIONS
from services.simulator.router_process import RouterProcess
from services.simulator.scenario import ScenarioOptions
from services.simulator.worker_process import WorkerProcess

ALIAS = "simulated"
VOCABULARY_SIZE = 997
EOS_TOKEN_IDS = frozenset({0, 1, 2, 3})
LAYERS = 8
TTFT_SLO_NS = 15 * NS_PER_MS
"""Tight for steps of a few milliseconds, so that steps are given up now and then."""
TBT_SLO_NS = 10 * NS_PER_MS


class SimFleet:
    """Routers and workers on one broker; every killed process is replaced in time."""

    def __init__(self, world: World, options: ScenarioOptions) -> None:
        self.world = world
        self.options = options
        self.network = SimBroker(world, MemoryBroker(), options.network)
        self.routers: list[RouterProcess] = []
        self.workers: list[WorkerProcess] = []
        self.kills = 0
        self.pauses = 0
        self.outages = 0
        self._has_faults = True
        self._started = 0
        self._rng = world.rng.child("faults")
        self._ensure_storage()
        for _ in range(options.routers):
            self._start_router()
        for _ in range(options.workers):
            self._start_worker()
        self._schedule_faults()

    def heal(self) -> None:
        """No more faults; what is paused wakes, what is down comes back."""
        self._has_faults = False
        self.network.heal()
        for process in (*self.routers, *self.workers):
            process.wake()

    @property
    def engine_options(self) -> SchedulerOptions:
        """The engine of every worker."""
        blocks_total = self.options.blocks_total
        return SchedulerOptions(
            step_tokens_max=128,
            sequences_max=16,
            block_tokens=self.options.block_tokens,
            blocks_total=blocks_total,
            context_tokens_max=min(1024, blocks_total * self.options.block_tokens),
            eos_token_ids=EOS_TOKEN_IDS,
            layers=LAYERS,
            coserve=CoserveOptions(ttft_slo_ns=TTFT_SLO_NS, tbt_slo_ns=TBT_SLO_NS),
        )

    def sessions_held(self) -> int:
        """Sessions that living routers and workers still hold; 0 once all is over."""
        open_sessions = sum(len(r.core.state.sessions) for r in self.routers)
        return open_sessions + sum(worker.core.sessions_held for worker in self.workers)

    def _ensure_storage(self) -> None:
        broker = self.network.broker
        broker.ensure_stream(JOURNAL_OPTIONS, now_ns=0)
        broker.ensure_bucket(
            CLAIM_BUCKET,
            age_max_ns=CLAIM_AGE_MAX_NS,
            bytes_max=CLAIM_BYTES_MAX,
            storage="file",
            now_ns=0,
        )

    # ------------------------------------------------------------------ processes

    def _start_router(self) -> None:
        self._started += 1
        options = RouterOptions(router_id=f"router-{self._started}", aliases=(ALIAS,))
        self.world.note(f"start {options.router_id}")
        self.routers.append(RouterProcess(self.network, options))

    def _start_worker(self) -> None:
        self._started += 1
        options = WorkerOptions(
            worker_id=f"worker-{self._started}",
            alias=ALIAS,
            process_id=self._started,
            vocabulary_size=VOCABULARY_SIZE,
            engine=self.engine_options,
        )
        self.world.note(f"start {options.worker_id}")
        self.workers.append(WorkerProcess(self.network, options, step_time=StepTimeModel()))

    def _kill_router(self) -> None:
        if self.routers:
            victim = self.routers.pop(self._rng.randrange(len(self.routers)))
            self._kill(victim)
            self.world.after(self._replace_after_ns(), self._start_router)

    def _kill_worker(self) -> None:
        if self.workers:
            victim = self.workers.pop(self._rng.randrange(len(self.workers)))
            self._kill(victim)
            self.world.after(self._replace_after_ns(), self._start_worker)

    def _kill(self, victim: SimProcess) -> None:
        self.kills += 1
        victim.kill()
        self.network.disconnect(victim)

    def _pause_router(self) -> None:
        self._pause(self._rng.choice(self.routers) if self.routers else None)

    def _pause_worker(self) -> None:
        self._pause(self._rng.choice(self.workers) if self.workers else None)

    def _pause(self, process: SimProcess | None) -> None:
        if process is None or process.life is not Life.RUNNING:
            return
        self.pauses += 1
        process.pause()
        duration_ns = self._rng.randint(50 * NS_PER_MS, self.options.faults.pause_ns_max)
        self.world.after(duration_ns, process.wake)

    def _stop_broker(self) -> None:
        if self.network.is_down:
            return
        self.outages += 1
        self.network.is_down = True
        self.world.note("broker down")
        duration_ns = self._rng.randint(100 * NS_PER_MS, self.options.faults.outage_ns_max)
        self.world.after(duration_ns, self._start_broker)

    def _start_broker(self) -> None:
        self.network.is_down = False
        self.world.note("broker up")

    # ------------------------------------------------------------------ faults

    def _schedule_faults(self) -> None:
        faults = self.options.faults
        for mean_ns, fault in (
            (faults.worker_kill_ns, self._kill_worker),
            (faults.worker_pause_ns, self._pause_worker),
            (faults.router_kill_ns, self._kill_router),
            (faults.router_pause_ns, self._pause_router),
            (faults.broker_outage_ns, self._stop_broker),
        ):
            if mean_ns is not None:
                self._schedule(mean_ns, fault)

    def _schedule(self, mean_ns: int, fault: Action) -> None:
        def strike() -> None:
            if self._has_faults:
                fault()
                self._schedule(mean_ns, fault)

        self.world.after(int(self._rng.expovariate(1.0 / mean_ns)), strike)

    def _replace_after_ns(self) -> int:
        faults = self.options.faults
        is_slow = self._rng.random() < faults.replace_fails_probability
        return faults.replace_after_ns * (10 if is_slow else 1)

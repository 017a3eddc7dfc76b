"""One run: a backlog without end, online requests as they arrive, and what came of them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

from libs.engine.scheduler import SchedulerOptions
from libs.engine.scheduling.tally import CoserveTally
from libs.kernel.core import require
from libs.kernel.units import NS_PER_S
from libs.sim.world import World
from services.gpu_worker.checkpoint_options import CheckpointCounters, CheckpointOptions
from services.gpu_worker.options import WorkerOptions
from services.simulator.coserve.device import Device
from services.simulator.coserve.requests import CoserveRequest
from services.simulator.coserve.router import CoserveRouter, ServedRequest
from services.simulator.coserve.worker import CoserveWorker, StepSpan

ALIAS: Final = "simulated"
REPORT_INTERVAL_NS: Final = 10 * NS_PER_S
"""Nobody hears the reports here, and each looks at every block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoserveRunOptions:
    """One run, completely: equal options give equal histories."""

    seed: int
    engine: SchedulerOptions
    checkpoints: CheckpointOptions
    vocabulary_size: int
    device: Device
    online: tuple[CoserveRequest, ...]
    """In order of arrival."""
    duration_ns: int
    """What is measured; longer by as long as answers to online requests are still missing."""
    offline_open_max: int
    """Offline sessions at the worker: all that can run, and some that wait."""
    settle_ns: int = 2 * NS_PER_S
    """Offline work runs alone for so long before."""
    drain_ns_max: int = 120 * NS_PER_S
    """For answers that are still missing at the end; what is not there by then has not been
    answered."""
    checks_invariants: bool = False
    """After every event, which takes longer than all the rest."""
    actions_max: int = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CoserveOutcome:
    """What a run came to."""

    served: tuple[ServedRequest, ...]
    """Every online request, in order of arrival."""
    elapsed_ns: int
    """Of what was measured."""
    ended_at_ns: int
    """On the clock of `served`."""
    tally: CoserveTally
    """Of what was measured."""
    checkpoints: CheckpointCounters
    """Of the whole run."""
    steps: tuple[StepSpan, ...]
    """Of the whole run."""
    busy_share: float
    """Of the time that was measured, spent in steps."""
    copying_share: float
    """Of the whole run, spent in copies on the link."""
    digest: str
    """Of all steps; equal for equal histories."""


def run_coserve(options: CoserveRunOptions, *, backlog: Iterator[CoserveRequest]) -> CoserveOutcome:
    """Serve the requests. `backlog` is asked for as many offline ones as are finished."""
    world = World(seed=options.seed, actions_max=options.actions_max)
    router = CoserveRouter(
        world, alias=ALIAS, backlog=backlog, offline_open_max=options.offline_open_max
    )
    worker = CoserveWorker(
        world,
        _worker_options(options),
        device=options.device,
        on_tokens=router.tokens_came,
        checks_invariants=options.checks_invariants,
    )
    worker.start()
    router.connect(worker)
    world.run(until_ns=options.settle_ns, is_done=lambda: False)
    before, busy_before_ns, began_at_ns = replace(worker.core.tally), worker.busy_ns, world.now_ns
    _send(options.online, world=world, router=router)
    ends_at_ns = began_at_ns + options.duration_ns
    world.run(until_ns=ends_at_ns, is_done=lambda: False)
    requests = len(options.online)
    world.run(
        until_ns=ends_at_ns + options.drain_ns_max, is_done=lambda: router.answered == requests
    )
    elapsed_ns = max(options.duration_ns, world.now_ns - began_at_ns)
    require(len(router.served) == requests, "a request comes after the end")
    return CoserveOutcome(
        served=tuple(router.served.values()),
        elapsed_ns=elapsed_ns,
        ended_at_ns=began_at_ns + elapsed_ns,
        tally=_difference(before, worker.core.tally),
        checkpoints=worker.core.checkpointing.counters,
        steps=tuple(worker.steps),
        busy_share=(worker.busy_ns - busy_before_ns) / max(1, elapsed_ns),
        copying_share=worker.copying_ns / max(1, world.now_ns),
        digest=world.digest,
    )


def _send(requests: tuple[CoserveRequest, ...], *, world: World, router: CoserveRouter) -> None:
    """Let each request come at its time, one scheduled by the one before."""
    began_at_ns = world.now_ns

    def send(index: int) -> None:
        router.send_online(requests[index])
        schedule(index + 1)

    def schedule(index: int) -> None:
        if index < len(requests):
            at_ns = began_at_ns + requests[index].arrival_ns
            world.after(max(0, at_ns - world.now_ns), lambda: send(index))

    schedule(0)


def _worker_options(options: CoserveRunOptions) -> WorkerOptions:
    return WorkerOptions(
        worker_id="worker",
        alias=ALIAS,
        process_id=1,
        vocabulary_size=options.vocabulary_size,
        engine=options.engine,
        can_hold_to_schema=False,
        report_interval_ns=REPORT_INTERVAL_NS,
        checkpoints=options.checkpoints,
    )


def _difference(before: CoserveTally, after: CoserveTally) -> CoserveTally:
    begun = asdict(before)
    return CoserveTally(**{name: value - begun[name] for name, value in asdict(after).items()})

"""One simulated run: warm up, then the trace and its load, then drain."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from libs.policy.parallel_config import ConfigSearch, NoShapeFits, Workload
from libs.sim.world import World
from services.simulator.spot.fleet import SpotFleet
from services.simulator.spot.options import SpotRunOptions
from services.simulator.spot.work import SimRequest

WARM_UP_NS_MAX = 3_600 * NS_PER_S
MARKET_WARM_UP_NS = 600 * NS_PER_S
OnProgress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotRun:
    """What a run left behind."""

    options: SpotRunOptions
    fleet: SpotFleet
    requests: tuple[SimRequest, ...]
    """All that arrived, in order of arrival; times are those of the world."""
    begins_at_ns: int
    """When the trace began, on the world's clock."""
    digest: str
    actions: int


def run_spot(options: SpotRunOptions, *, on_progress: OnProgress | None = None) -> SpotRun:
    """Run to the end. Raises: ConfigError if the model never fits what nodes there are."""
    _check_fits(options)
    world = World(seed=options.seed, actions_max=options.actions_max)
    fleet = SpotFleet(world, options)
    _warm_up(world, fleet)
    begins_at_ns = fleet.begins_at_ns
    requests = [
        SimRequest(
            request_id=f"request-{number:06}",
            arrived_at_ns=begins_at_ns + arrival.at_ns,
            prompt_tokens=arrival.prompt_tokens,
            output_tokens=arrival.output_tokens,
        )
        for number, arrival in enumerate(options.arrivals)
    ]
    if fleet.market is None:
        _schedule_nodes(world, fleet, begins_at_ns=begins_at_ns)
    _schedule_arrivals(world, fleet, requests)
    _pass(world, until_ns=begins_at_ns + options.trace.end_at_ns, on_progress=on_progress)
    world.run(
        until_ns=world.now_ns + options.drain_ns_max,
        is_done=lambda: len(fleet.finished) == len(requests),
    )
    return SpotRun(
        options=options,
        fleet=fleet,
        requests=tuple(requests),
        begins_at_ns=begins_at_ns,
        digest=world.digest,
        actions=world.actions_run,
    )


def _check_fits(options: SpotRunOptions) -> None:
    workers = options.trace.nodes_max * options.hardware.gpus_per_node
    search = ConfigSearch(
        profile=options.profile,
        workload=Workload(requests_per_s=options.requests_per_s_target),
        workers=workers,
        memory_bytes=None if options.model is None else options.hardware.gpu_bytes,
        options=options.plan.search,
        memory=options.memory,
    )
    chosen = search.choose()
    if isinstance(chosen, NoShapeFits):
        raise ConfigError(
            f"{options.trace.name}: never has nodes enough for {options.profile.name}: "
            f"{chosen.reason}"
        )


def _warm_up(world: World, fleet: SpotFleet) -> None:
    """Start what is there at 0 and let it load until it serves, which is the trace's 0."""
    if fleet.market is not None:
        # What is asked for comes at once and costs nothing yet; by the end nothing changes.
        fleet.control.begin()
        world.run(until_ns=MARKET_WARM_UP_NS, is_done=lambda: False)
        fleet.begin_trace()
        return
    first = [span for span in fleet.options.trace.spans if span.usable_at_ns == 0]
    for span in first:
        fleet.nodes.add(span.node_id)
    fleet.control.begin()
    planner = fleet.control.planner
    world.run(
        until_ns=WARM_UP_NS_MAX if first else 0,
        is_done=lambda: fleet.plan_revision_reached > 1 or bool(planner.why_no_plan),
    )
    fleet.begin_trace()


def _schedule_nodes(world: World, fleet: SpotFleet, *, begins_at_ns: int) -> None:
    grace_ns = fleet.options.grace_ns
    for span in fleet.options.trace.spans:
        usable_at_ns = begins_at_ns + span.usable_at_ns
        if span.usable_at_ns > 0:
            world.after(usable_at_ns - world.now_ns, partial(fleet.nodes.add, span.node_id))
        if span.gone_at_ns is None:
            continue
        gone_at_ns = begins_at_ns + span.gone_at_ns
        warned_at_ns = max(usable_at_ns, gone_at_ns - grace_ns, world.now_ns)
        warn = partial(fleet.nodes.warn, span.node_id, ends_at_ns=gone_at_ns)
        world.after(warned_at_ns - world.now_ns, warn)
        world.after(gone_at_ns - world.now_ns, partial(fleet.nodes.end, span.node_id))


def _schedule_arrivals(world: World, fleet: SpotFleet, requests: list[SimRequest]) -> None:
    """One at a time, so that the heap stays small."""
    coming = iter(requests)

    def schedule_next() -> None:
        request = next(coming, None)
        if request is not None:
            world.after(request.arrived_at_ns - world.now_ns, partial(arrive, request))

    def arrive(request: SimRequest) -> None:
        fleet.arrive(request)
        schedule_next()

    schedule_next()


def _pass(world: World, *, until_ns: int, on_progress: OnProgress | None) -> None:
    """Let the trace pass, in parts if somebody wants to hear of it."""
    began_at_ns = world.now_ns
    parts = 100 if on_progress is not None else 1
    for part in range(1, parts + 1):
        world.run(
            until_ns=began_at_ns + (until_ns - began_at_ns) * part // parts, is_done=lambda: False
        )
        if on_progress is not None:
            on_progress(part)

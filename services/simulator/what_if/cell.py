"""One cell of the fleet: the live cores under a cloud of its own, for as long as asked."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from libs.contracts.placement import Policy
from libs.kernel.core import require
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.parallel_config import Candidate, ConfigSearch, SearchOptions, Workload
from libs.policy.placement_plan import PlanOptions
from libs.sim.world import World
from services.planner.options import CapacityOptions
from services.simulator.spot.control import PaceOptions
from services.simulator.spot.fleet import SpotFleet
from services.simulator.spot.nodes import Nodes
from services.simulator.spot.options import EngineKind, SpotRunOptions
from services.simulator.spot.paper_models import PAPER_MODELS, WORKSPACE_BYTES
from services.simulator.spot.setting import CONTINUOUS_BATCH_MAX
from services.simulator.spot.trace import NodeTrace
from services.simulator.spot.work import SimRequest
from services.simulator.what_if.cloud import Bill, CellCloud
from services.simulator.what_if.demand import arrivals_of, requests_per_s_at
from services.simulator.what_if.histogram import Histogram
from services.simulator.what_if.scenario import HOUR_NS, Buying, Scenario
from services.simulator.what_if.zones import zones_of

PACE: Final = PaceOptions(busy_ns=NS_PER_S, rest_ns=30 * NS_PER_S, is_checked_each_event=False)
"""Everybody reports once a second while anything is under way, and twice a minute at rest."""
RATE_WINDOW_NS: Final = 300 * NS_PER_S
"""Of hundreds of arrivals: chance alone is then no reason to rent or return a node."""
RELEASE_AFTER_NS: Final = 1_800 * NS_PER_S
"""A node that is wanted again within half an hour is not given back: each way is a hand-over."""
HEADROOM: Final = 1.25
"""Nominal spot capacity of a cell's zones together, over the nodes that it may rent."""
WARM_UP_NS_MAX: Final = HOUR_NS
DRAIN_NS_MAX: Final = 2 * HOUR_NS
ACTIONS_MAX: Final = 10**12
"""Of one cell; a day of 10^5 requests takes 10^6."""


@dataclass(slots=True, kw_only=True)
class CellOutcome:
    """What a cell, or several together, came to."""

    requests: int = 0
    failed: int = 0
    """Not finished when the drain ended."""
    within_slo: int = 0
    tokens: int = 0
    """Prompt and answer of what finished."""
    tokens_recomputed: int = 0
    latency_ms: Histogram = field(default_factory=Histogram)
    first_token_ms: Histogram = field(default_factory=Histogram)
    bill: Bill = field(default_factory=Bill)
    handovers: int = 0
    actions: int = 0
    digests: list[str] = field(default_factory=list)

    def merge(self, other: "CellOutcome") -> None:
        """Add what another cell came to."""
        self.requests += other.requests
        self.failed += other.failed
        self.within_slo += other.within_slo
        self.tokens += other.tokens
        self.tokens_recomputed += other.tokens_recomputed
        self.latency_ms.merge(other.latency_ms)
        self.first_token_ms.merge(other.first_token_ms)
        self.bill.merge(other.bill)
        self.handovers += other.handovers
        self.actions += other.actions
        self.digests += other.digests


class Cell:
    """One cell; `run` once."""

    def __init__(
        self, scenario: Scenario, *, number: int, buying: Buying,
        engine: EngineKind = EngineKind.COUNTED,
    ) -> None:  # fmt: skip
        self._scenario = scenario
        self._profile = scenario.profile
        self._number = number
        self._buying = buying
        self._outcome = CellOutcome()
        self._slo_ns = slo_ns(scenario)
        self._world = World(seed=scenario.seed, actions_max=ACTIONS_MAX)
        self._open = 0
        self._fleet = SpotFleet(
            self._world, cell_options(scenario, engine=engine),
            make_market=self._make_market, on_finished=self._finished,
        )  # fmt: skip
        assert isinstance(self._fleet.market, CellCloud)
        self._cloud = self._fleet.market

    def run(self) -> CellOutcome:
        """Warm up, let the time pass and the requests come, drain."""
        self._warm_up()
        begins_at_ns = self._world.now_ns
        end_at_ns = begins_at_ns + self._scenario.end_at_ns
        self._next_arrival(arrivals_of(self._scenario, cell=self._number), since_ns=begins_at_ns)
        self._world.run(until_ns=end_at_ns, is_done=lambda: False)
        self._world.run(until_ns=end_at_ns + DRAIN_NS_MAX, is_done=lambda: not self._open)
        outcome, record = self._outcome, self._fleet.control.record
        outcome.failed = self._open
        outcome.bill = self._cloud.close(end_at_ns=end_at_ns)
        outcome.handovers = 0 if record is None else record.handovers_done
        outcome.actions = self._world.actions_run
        outcome.digests.append(self._world.digest)
        return outcome

    def _make_market(self, world: World, nodes: Nodes, options: SpotRunOptions) -> CellCloud:
        scenario = self._scenario
        zones = zones_of(scenario, region=self._number % scenario.regions)
        nodes_per_zone = round(HEADROOM * scenario.nodes_per_cell / len(zones))
        return CellCloud(
            world,
            nodes,
            zones=zones,
            nodes_per_zone=nodes_per_zone if self._buying is Buying.SPOT else 0,
            nodes_max=scenario.nodes_per_cell,
            launch_ns=options.hardware.launch_ns,
            rng=Rng(scenario.seed).child(f"victims in cell {self._number}"),
        )

    def _warm_up(self) -> None:
        nodes = nodes_needed(self._scenario, requests_per_s_at(self._scenario, 0))
        self._cloud.start_with(min(nodes + 1, self._scenario.nodes_per_cell))
        self._fleet.control.begin()
        is_warm = self._world.run(
            until_ns=WARM_UP_NS_MAX, is_done=lambda: self._fleet.plan_revision_reached > 1
        )
        require(is_warm, "the cell never began to serve")
        self._fleet.begin_trace()

    def _next_arrival(self, coming: Iterator[int], *, since_ns: int) -> None:
        at_ns = next(coming, None)
        if at_ns is None:
            return
        arrive = partial(self._arrive, coming, since_ns=since_ns)
        self._world.after(since_ns + at_ns - self._world.now_ns, arrive)

    def _arrive(self, coming: Iterator[int], *, since_ns: int) -> None:
        self._outcome.requests += 1
        self._open += 1
        self._fleet.arrive(
            SimRequest(
                request_id=f"request-{self._outcome.requests:08}",
                arrived_at_ns=self._world.now_ns,
                prompt_tokens=self._profile.prompt_tokens,
                output_tokens=self._profile.output_tokens,
            )
        )
        self._next_arrival(coming, since_ns=since_ns)

    def _finished(self, request: SimRequest) -> None:
        outcome, latency_ns = self._outcome, request.latency_ns
        assert latency_ns is not None
        assert request.first_token_at_ns is not None
        self._open -= 1
        outcome.within_slo += latency_ns <= self._slo_ns
        outcome.tokens += request.prompt_tokens + request.output_tokens
        outcome.tokens_recomputed += request.tokens_recomputed
        outcome.latency_ms.add(latency_ns // NS_PER_MS)
        first_ns = request.first_token_at_ns - request.arrived_at_ns
        outcome.first_token_ms.add(first_ns // NS_PER_MS)


def slo_ns(scenario: Scenario) -> int:
    """Return what a request may take: as asked, or twice a lone typical one on the best shape."""
    if scenario.slo_s is not None:
        return round(scenario.slo_s * NS_PER_S)
    return 2 * _chosen(scenario, requests_per_s=1e-6).execution_ns


def nodes_needed(scenario: Scenario, requests_per_s: float) -> int:
    """Return the fewest nodes of a cell that keep up, or all where none do."""
    workers = _chosen(scenario, requests_per_s=requests_per_s).config.workers
    return -(-workers // scenario.node.gpus_per_node)


def _chosen(scenario: Scenario, *, requests_per_s: float) -> Candidate:
    options = cell_options(scenario, engine=EngineKind.COUNTED)
    search = ConfigSearch(
        profile=options.profile,
        workload=Workload(requests_per_s=requests_per_s),
        workers=scenario.nodes_per_cell * scenario.node.gpus_per_node,
        memory_bytes=options.hardware.gpu_bytes,
        options=replace(options.plan.search, uses_all_workers=False),
        memory=options.memory,
    )
    chosen = search.choose()
    assert isinstance(chosen, Candidate), "the scenario has checked that the model fits"
    return chosen


def cell_options(scenario: Scenario, *, engine: EngineKind) -> SpotRunOptions:
    """Return the options of a cell's fleet: the product's own policy, demand measured."""
    search = SearchOptions(batches=(1, 2, 4, CONTINUOUS_BATCH_MAX), workspace_bytes=WORKSPACE_BYTES)
    return SpotRunOptions(
        seed=scenario.seed,
        profile=scenario.profile,
        hardware=scenario.node,
        model=PAPER_MODELS[scenario.model],
        trace=NodeTrace(name="what-if", spans=(), end_at_ns=scenario.end_at_ns),
        arrivals=(),
        plan=PlanOptions(policy=Policy.TIDESERVE, search=search),
        engine=engine,
        requests_per_s_target=requests_per_s_at(scenario, 0),
        is_demand_measured=True,
        batch_max=CONTINUOUS_BATCH_MAX,
        capacity=CapacityOptions(
            nodes_max=scenario.nodes_per_cell,
            nodes_min=-(-scenario.profile.replica_workers_min // scenario.node.gpus_per_node),
            release_after_ns=RELEASE_AFTER_NS,
            rate_window_ns=RATE_WINDOW_NS,
            workers_per_node=scenario.node.gpus_per_node,
        ),
        pace=PACE,
        actions_max=ACTIONS_MAX,
    )

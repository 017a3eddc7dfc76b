"""From what a person asks for to the options of a run: model, trace, load and policy by name.

The only part of the product that reads the load generator's traces and arrivals. The policies of
SpotServe's paper run as its artifact ran them: fixed batches of at most 4, requests sent ahead to
busy replicas, demand told and not measured; baselines hear of a loss when it happens. `tideserve`
runs as the product does.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from libs.contracts.placement import Policy
from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from libs.policy.model_profile import ModelProfile
from libs.policy.paper_profiles import PAPER_PROFILES
from libs.policy.parallel_config import (
    PAPER_SEARCH,
    Candidate,
    ConfigSearch,
    NoShapeFits,
    SearchOptions,
    Workload,
)
from libs.policy.placement_plan import PlanOptions
from loadgen.arrivals import RateSegment, arrivals_over, exponential_gaps, gamma_gaps
from loadgen.traces.availability import AvailabilityTrace
from loadgen.traces.detect import read_availability, read_requests
from loadgen.traces.scenarios import FLUCTUATING_RATES_PER_S, SCENARIOS
from services.planner.options import CapacityOptions
from services.simulator.spot.hardware import Hardware, hardware_of
from services.simulator.spot.options import Arrival, EngineKind, SpotRunOptions
from services.simulator.spot.paper_models import PAPER_MODELS, WORKSPACE_BYTES
from services.simulator.spot.trace import NodeSpan, NodeTrace

BATCH_MAX: Final = 4
"""B of the artifact's scripts."""
CONTINUOUS_BATCH_MAX: Final = 8
"""The largest B of the paper; more would lie too far beyond what its profile measured."""
NODES_OF_THE_ARTIFACT: Final = 10
"""Its rerouting fixes the shape and the batch that are best for so many nodes."""
ARTIFACT_SEARCH: Final = replace(PAPER_SEARCH, batches=(1, 2, BATCH_MAX))
"""Chooses the shape at whichever batch is fastest; what then runs takes up to BATCH_MAX."""
LOSS_NOTICE_NS: Final = NS_PER_S // 2
"""What a policy that only reacts needs to stop: the artifact's constant."""
ON_DEMAND: Final = "on-demand"
REQUESTS_MAX: Final = 5_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperLoad:
    """Of one model in SpotServe's evaluation."""

    requests_per_s: float
    required_requests_per_s: float
    """What its optimiser is given."""


PAPER_LOADS: Final[Mapping[str, PaperLoad]] = {
    "opt-6.7b": PaperLoad(requests_per_s=1.5, required_requests_per_s=2.0),
    "gpt-20b": PaperLoad(requests_per_s=0.35, required_requests_per_s=0.4),
    "llama-30b": PaperLoad(requests_per_s=0.2, required_requests_per_s=0.2),
}


class PolicyName(StrEnum):
    """What can be simulated."""

    SPOTSERVE = "spotserve"
    REPARALLELIZE = "reparallelize"
    REROUTE = "reroute"
    ON_DEMAND = "on-demand"
    """SpotServe's engine on the fewest nodes that keep up, none of which is ever taken."""
    TIDESERVE = "tideserve"

    @property
    def policy(self) -> Policy:
        """Whose decisions they are."""
        return Policy.SPOTSERVE if self is PolicyName.ON_DEMAND else Policy(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run, as a person asks for it."""

    policy: PolicyName
    spot_trace: str = "A_S"
    """A named scenario, or a file of any known format."""
    model: str = "gpt-20b"
    hardware: str = "g4dn.12xlarge"
    seed: int = 1
    arrivals: str = "paper"
    """`paper`, `poisson`, or `gamma:CV`."""
    workload: Path | None = None
    """A file of requests; None: the profile's typical request at the paper's rate."""
    engine: EngineKind | None = None
    """None: the policy's own."""
    requests_per_s: float | None = None
    """None: the paper's for this model."""
    launch_s: float | None = None
    """Added to every addition after 0 of a file that says when nodes were asked for."""
    batches_ahead: int | None = None
    """Of the paper's engine; None: as its scripts have it. 0 is its new batching."""
    capacity: CapacityOptions | None = None
    """Nodes are bought as `tideserve` wants them; None: all that the trace has are there."""
    on_demand_nodes: int | None = None
    """A fleet of so many nodes on demand, all there from the beginning, in place of the trace's."""
    is_shape_fixed: bool = False
    """Ablation: the shape that rerouting would have, whatever the policy."""


def run_options(setting: Setting) -> SpotRunOptions:
    """Return the options. Raises: ConfigError that names the argument, or file and line."""
    profile = _profile(setting.model)
    hardware = hardware_of(setting.hardware)
    load = PAPER_LOADS[profile.name]
    availability = _availability(setting, hardware)
    told = [(c.at_ns, c.required_requests_per_s) for c in availability.changes]
    demand_steps = tuple((at_ns, rate) for at_ns, rate in told if rate is not None)
    target = min((rate for _, rate in demand_steps), default=load.required_requests_per_s)
    if setting.requests_per_s is not None:
        target *= setting.requests_per_s / load.requests_per_s
    is_paper = setting.policy is not PolicyName.TIDESERVE
    fixed = _best(profile, target, workers=NODES_OF_THE_ARTIFACT * hardware.gpus_per_node)
    search, batch_max = _search(setting, fixed)
    only_reacts = setting.policy in (PolicyName.REROUTE, PolicyName.REPARALLELIZE)
    engine = setting.engine or (EngineKind.PAPER if is_paper else EngineKind.CONTINUOUS)
    if engine is not EngineKind.PAPER:
        # Its prompts come one by one: none is computed in the shadow of another.
        profile = replace(profile, is_prefill_amortised=False)
    options = SpotRunOptions(
        seed=setting.seed,
        profile=profile,
        hardware=hardware,
        model=PAPER_MODELS[profile.name],
        trace=_trace(availability),
        arrivals=tuple(_arrivals(setting, profile, load, end_at_ns=availability.end_at_ns)),
        plan=PlanOptions(
            policy=setting.policy.policy, search=replace(search, workspace_bytes=WORKSPACE_BYTES)
        ),
        engine=engine,
        requests_per_s_target=target,
        is_demand_measured=not is_paper,
        demand_steps=demand_steps if is_paper else (),
        batch_max=batch_max,
        capacity=setting.capacity,
        batches_ahead=_batches_ahead(setting, only_reacts=only_reacts),
    )
    if only_reacts:
        options = replace(options, grace_ns=LOSS_NOTICE_NS)
    nodes = setting.on_demand_nodes
    if setting.policy is PolicyName.ON_DEMAND and nodes is None:
        nodes = _nodes_that_keep_up(profile, target, hardware)
    if nodes is not None:
        options = replace(options, trace=_constant(nodes, end_at_ns=availability.end_at_ns))
    return options


# ------------------------------------------------------------------ the policy


def _profile(name: str) -> ModelProfile:
    if name not in PAPER_PROFILES:
        raise ConfigError(f"model: no {name!r}; there are {', '.join(PAPER_PROFILES)}")
    return PAPER_PROFILES[name]


def _search(setting: Setting, fixed: Candidate) -> tuple[SearchOptions, int]:
    """Return what is searched, and B."""
    shape_only = fixed.config.shape if setting.is_shape_fixed else None
    match setting.policy:
        case PolicyName.TIDESERVE:
            batches = (1, 2, 4, CONTINUOUS_BATCH_MAX)
            return SearchOptions(batches=batches, shape_only=shape_only), CONTINUOUS_BATCH_MAX
        case PolicyName.REROUTE:
            search = replace(ARTIFACT_SEARCH, shape_only=fixed.config.shape)
            return search, fixed.config.batch
        case PolicyName.SPOTSERVE | PolicyName.REPARALLELIZE | PolicyName.ON_DEMAND:
            return replace(ARTIFACT_SEARCH, shape_only=shape_only), BATCH_MAX


def _best(profile: ModelProfile, target: float, *, workers: int) -> Candidate:
    found = _searched(profile, target, workers=workers).choose()
    if isinstance(found, NoShapeFits):
        raise ConfigError(f"model: {found.reason}")
    return found


def _searched(profile: ModelProfile, target: float, *, workers: int) -> ConfigSearch:
    return ConfigSearch(
        profile=profile,
        workload=Workload(requests_per_s=target),
        workers=workers,
        memory_bytes=None,
        options=ARTIFACT_SEARCH,
    )


def _batches_ahead(setting: Setting, *, only_reacts: bool) -> int:
    if setting.batches_ahead is not None:
        return setting.batches_ahead
    return 2 if only_reacts else 1


def _nodes_that_keep_up(profile: ModelProfile, target: float, hardware: Hardware) -> int:
    for nodes in range(1, 10_000):
        found = _searched(profile, target, workers=nodes * hardware.gpus_per_node).choose()
        if isinstance(found, Candidate) and found.keeps_up:
            return nodes
    raise ConfigError(f"requests per second: no number of nodes keeps up with {target:g}")


# ------------------------------------------------------------------ nodes


def _availability(setting: Setting, hardware: Hardware) -> AvailabilityTrace:
    name = setting.spot_trace
    rng = Rng(setting.seed).child("spot trace")
    trace = read_availability(name, rng=rng)
    launch_s = setting.launch_s
    if launch_s is None:
        return trace
    if not 0 <= launch_s < math.inf:
        raise ConfigError("launch: must be seconds, 0 or more")
    return trace.added_later(delay_ns=round(launch_s * NS_PER_S))


def _trace(availability: AvailabilityTrace) -> NodeTrace:
    """Number the nodes as they come: names of a trace need not be subject tokens, nor come once."""
    spans = tuple(
        NodeSpan(
            node_id=f"node-{number}",
            usable_at_ns=life.added_at_ns,
            gone_at_ns=life.removed_at_ns,
        )
        for number, life in enumerate(availability.lives())
    )
    trace = NodeTrace(name=availability.name, spans=spans, end_at_ns=availability.end_at_ns)
    return replace(trace, on_demand_node_ns=_on_demand_node_ns(availability, trace.node_ns))


def _on_demand_node_ns(availability: AvailabilityTrace, node_ns: int) -> int:
    scenario = SCENARIOS.get(availability.name)
    if scenario is None or not scenario.spot_nodes_at_s:
        return 0
    total = node_ns
    counts = availability.counts()
    spot = [(at_s * NS_PER_S, nodes) for at_s, nodes in scenario.spot_nodes_at_s.items()]
    edges = sorted({at for at, _ in (*counts, *spot) if at < availability.end_at_ns})
    for at_ns, until_ns in zip(edges, [*edges[1:], availability.end_at_ns], strict=True):
        there = _latest(counts, at_ns)
        total -= min(there, _latest(tuple(spot), at_ns)) * (until_ns - at_ns)
    return total


def _latest(counts: tuple[tuple[int, int], ...] | list[tuple[int, int]], at_ns: int) -> int:
    return next((nodes for since_ns, nodes in reversed(counts) if since_ns <= at_ns), 0)


def _constant(nodes: int, *, end_at_ns: int) -> NodeTrace:
    return NodeTrace(
        name=ON_DEMAND,
        spans=tuple(NodeSpan(node_id=f"node-{n}", usable_at_ns=0) for n in range(nodes)),
        end_at_ns=end_at_ns,
        on_demand_node_ns=nodes * end_at_ns,
    )


# ------------------------------------------------------------------ requests


def _arrivals(
    setting: Setting, profile: ModelProfile, load: PaperLoad, *, end_at_ns: int
) -> Iterator[Arrival]:
    if setting.workload is not None:
        yield from _recorded(setting.workload, end_at_ns=end_at_ns)
        return
    rate = load.requests_per_s if setting.requests_per_s is None else setting.requests_per_s
    if not 0 < rate <= 1e6:
        raise ConfigError("requests per second: must be above 0 and at most 1e6")
    if rate * end_at_ns / NS_PER_S > REQUESTS_MAX:
        raise ConfigError(f"requests per second: more than {REQUESTS_MAX} requests in all")
    gaps = _gaps(setting, rate)
    for at_ns in arrivals_over(gaps, _rates(setting, rate, end_at_ns=end_at_ns)):
        yield Arrival(
            at_ns=at_ns, prompt_tokens=profile.prompt_tokens, output_tokens=profile.output_tokens
        )


def _recorded(path: Path, *, end_at_ns: int) -> Iterator[Arrival]:
    for request in read_requests(path):
        if request.arrival_ns >= end_at_ns:
            return
        lengths = request.lengths
        if lengths.prompt_tokens and lengths.output_tokens:
            yield Arrival(
                at_ns=request.arrival_ns,
                prompt_tokens=lengths.prompt_tokens,
                output_tokens=lengths.output_tokens,
            )


def _gaps(setting: Setting, rate: float) -> Iterator[float]:
    rng = Rng(setting.seed).child("arrivals")
    kind, _, given = setting.arrivals.partition(":")
    match kind:
        case "paper" if not given:
            # The artifact's "CV 6" is a gamma distribution of scale 6 ms: nearly even gaps.
            return gamma_gaps(rng, cv=math.sqrt(0.006 * rate))
        case "poisson" if not given:
            return exponential_gaps(rng)
        case "gamma" if given:
            try:
                return gamma_gaps(rng, cv=float(given))
            except ValueError:
                pass
    raise ConfigError(f"arrivals: {setting.arrivals!r} is none of paper, poisson, gamma:CV")


def _rates(setting: Setting, rate: float, *, end_at_ns: int) -> Iterator[RateSegment]:
    if "'" not in setting.spot_trace or setting.requests_per_s is not None:
        yield RateSegment(duration_ns=end_at_ns, rate_per_s=rate)
        return
    minutes = end_at_ns // (60 * NS_PER_S)
    for of_minute in FLUCTUATING_RATES_PER_S[:minutes]:
        yield RateSegment(duration_ns=60 * NS_PER_S, rate_per_s=of_minute)

"""What the planner's core may be told; the process's own config maps onto it."""

from dataclasses import dataclass, field

from libs.engine.model_config import ModelConfig
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.liveness import LivenessOptions
from libs.policy.model_profile import ModelProfile
from libs.policy.placement_plan import PlanOptions

ECHOES_MISSED_MAX = 15
"""3 s of silence at 200 ms: longer than a router waits, to whom a false death costs a resume; here
it costs a hand-over of the whole replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityOptions:
    """How many nodes to ask for; without a bound on nodes none are asked for."""

    nodes_max: int = 0
    """Of both markets together; 0: the fleet is what it is."""
    nodes_min: int = 1
    """Kept whatever the demand."""
    nodes_extra: int = 1
    """Spot nodes beyond the need, for the next preemption."""
    release_after_ns: int = 300 * NS_PER_S
    """The need is the most of so long a time: a lull is no reason to give nodes back."""
    rate_window_ns: int = 120 * NS_PER_S
    """Arrivals are averaged over this: a wave that is shorter than a launch is over before the node
    that was asked for it has come."""
    latency_slack_percent: int = 33
    """The need is the fewest nodes whose predicted latency is at most this much above the least
    that any number of nodes would give."""
    workers_per_node: int = 1
    """Until nodes report how many they have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerOptions:
    """Limits and intervals of one planner. Every limit has a rule for what happens at it."""

    planner_id: str
    """Unique per process start; a subject token."""
    alias: str
    """The model that it plans for."""
    profile: ModelProfile
    """What is known of the model's bytes and times."""
    plan: PlanOptions
    """Policy and search."""
    model: ModelConfig | None = None
    """What workers cut; None, where it is not known here: memory is judged by the profile alone."""
    capacity: CapacityOptions = field(default_factory=CapacityOptions)
    process_id: int = 0
    """Shown in reports."""
    requests_per_s_min: float = 0.5
    """Planned for even when less arrives, so that an idle night does not reshape the fleet."""
    rate_window_ns: int = 30 * NS_PER_S
    """Arrivals are averaged over this; the paper's value."""
    report_interval_ns: int = 200 * NS_PER_MS
    """Heartbeat; see LivenessOptions for how many may be missed."""
    check_interval_ns: int = 1 * NS_PER_S
    """How often everything that may have been missed is looked at again."""
    debounce_ns: int = 100 * NS_PER_MS
    """From the first change to the plan, so that a burst makes one plan."""
    join_debounce_ns: int = 1 * NS_PER_S
    """The same for workers that join: they seldom come alone, and each placement of one that does
    makes a hand-over start over."""
    settle_ns: int = 1 * NS_PER_S
    """A new leader listens this long before its first plan: five reports of everybody."""
    store_retry_ns: int = 500 * NS_PER_MS
    """Pause before a store that was away is tried again."""
    reread_interval_ns: int = 5 * NS_PER_S
    """How often a planner on stand-by reads the placement anew."""
    reshape_interval_ns: int = 30 * NS_PER_S
    """Least time between two plans that only demand asks for."""
    capacity_interval_ns: int = 10 * NS_PER_S
    """How often the capacity wanted is said again."""
    notice_memory_ns: int = 60 * NS_PER_S
    """A notice that is not repeated this long, and whose deadline has passed, is forgotten."""
    deadline_change_ns_min: int = 1 * NS_PER_S
    """A deadline that moves by less is the same deadline."""
    workers_max: int = 16_384
    """Known at a time; one more is ignored, counted."""
    nodes_noticed_max: int = 4_096
    """Nodes with notices kept, known or not; past it the oldest is forgotten."""
    liveness: LivenessOptions = field(
        default_factory=lambda: LivenessOptions(echoes_missed_max=ECHOES_MISSED_MAX)
    )
    """When a silent worker or leader counts as dead."""

    def __post_init__(self) -> None:
        assert self.requests_per_s_min > 0
        assert self.debounce_ns < self.settle_ns

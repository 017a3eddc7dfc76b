"""One run of the simulated fleet, completely: equal options give equal histories."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from libs.contracts.placement import Policy
from libs.engine.model_config import ModelConfig
from libs.engine.parallel.memory_needs import ReplicaMemory
from libs.kernel.units import NS_PER_S
from libs.policy.model_profile import ModelProfile
from libs.policy.placement_plan import PlanOptions
from services.planner.options import CapacityOptions
from services.simulator.spot.control import PaceOptions
from services.simulator.spot.hardware import Hardware
from services.simulator.spot.paper_models import FP32
from services.simulator.spot.step_times import PREFILL_CHUNKS
from services.simulator.spot.trace import NodeTrace

BLOCK_TOKENS: Final = 16
"""Of a block of KV; the live workers' default."""


class EngineKind(StrEnum):
    """How replicas batch."""

    PAPER = "paper"
    """Fixed batches, answered together; what is lost starts over."""
    CONTINUOUS = "continuous"
    """The live scheduler: continuous batching; what is lost goes on from its tokens."""
    COUNTED = "counted"
    """The same histories, counted without tokens and blocks: for large fleets and long times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request to come."""

    at_ns: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotRunOptions:
    """Fleet, load and policy."""

    seed: int
    profile: ModelProfile
    hardware: Hardware
    model: ModelConfig | None = None
    """What workers compute their memory with; None: memory is not limited."""
    trace: NodeTrace
    arrivals: tuple[Arrival, ...]
    """In order of time, from the start of the trace."""
    plan: PlanOptions
    engine: EngineKind
    requests_per_s_target: float
    """What the planner plans for at least."""
    is_demand_measured: bool
    """Whether the planner sees what arrives; else it plans for the target alone."""
    demand_steps: tuple[tuple[int, float], ...] = ()
    """(at_ns, requests/s from then on) that the planner is told instead of what arrives."""
    batch_max: int = 4
    """B: requests that a replica computes at a time, whichever engine."""
    batches_ahead: int = 1
    """Of the paper's engine: batches that the door sends to a replica before it is idle."""
    step_tokens_max: int = 512
    """Of the continuous engine: prompt and answer tokens in one step."""
    prefill_chunks: int = PREFILL_CHUNKS
    """Parts that a prompt is cut into on its way through the stages of that engine."""
    grace_ns: int = 30 * NS_PER_S
    """From the notice to the end of a node; of a policy that only reacts, next to nothing."""
    capacity: CapacityOptions | None = None
    """Nodes are held as the planner asks: spot while the trace offers it, on demand always. None:
    all that the trace has, from when it says to when it says."""
    drain_ns_max: int = 7_200 * NS_PER_S
    """For what still runs when the trace ends; what is not done by then has failed."""
    pace: PaceOptions = field(default_factory=PaceOptions)
    actions_max: int = 200_000_000

    @property
    def context_tokens_max(self) -> int:
        """Of the longest request that comes; of a typical one where none is known before."""
        return max(
            (a.prompt_tokens + a.output_tokens for a in self.arrivals),
            default=self.profile.session_tokens,
        )

    @property
    def memory(self) -> ReplicaMemory | None:
        """The live workers' arithmetic for this model; None: memory is not limited."""
        if self.model is None:
            return None
        return ReplicaMemory(
            config=self.model,
            rule=FP32,
            block_tokens=BLOCK_TOKENS,
            context_tokens_max=self.context_tokens_max,
        )

    @property
    def policy(self) -> Policy:
        """Whose decisions are simulated."""
        return self.plan.policy

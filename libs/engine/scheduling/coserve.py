"""The ways to serve both tides on one engine: TideServe's own, and those it is compared with.

A policy is data: each field is one decision, made in one place of the scheduler.

    tideserve           online first, offline fills the slack that a closed loop leaves; offline
                        steps yield; the cheapest sequence makes room; tenants share fairly
    conserve            the paper: fixed margin and spacing, the newest offline sequence makes room
    online-only         offline work waits for ever
    non-preemptive      one queue in order of arrival, chunks shared, nobody makes room
    priority-recompute  vLLM: priorities; the last one makes room, and only when a block lacks
    fixed-chunk         Sarathi: online first, a fixed number of tokens per step

Source: ConServe, sections on the SLO-aware scheduler and on preemptible execution.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from libs.kernel.core import require
from libs.kernel.units import NS_PER_MS, NS_PER_S, NS_PER_US
from libs.policy.latency_model import LatencyModel

LATENCY_ASSUMED: Final = LatencyModel(
    step_ns=2 * NS_PER_MS,
    row_ns=50 * NS_PER_US,
    pair_prefilled_ns=50,
    token_attended_ns=500,
    sequence_ns=250 * NS_PER_US,
)
"""Until the first steps were measured: a small model on one processor core."""


HOLDS_PER_TTFT: Final = 12
"""Offline work holds an arrival once, by such a part of its TTFT SLO at most, and by half of that
on average. An eighth harvests 7 % more on a simulated Llama-2-7B, but shows in the P99: 1.13 times
that of online work alone, where a twelfth has 1.05."""


class Coserve(StrEnum):
    """Names of the policies, as operators give them."""

    TIDESERVE = "tideserve"
    CONSERVE = "conserve"
    ONLINE_ONLY = "online-only"
    NON_PREEMPTIVE = "non-preemptive"
    PRIORITY_RECOMPUTE = "priority-recompute"
    FIXED_CHUNK = "fixed-chunk"


class OfflineBudget(StrEnum):
    """How much offline work joins a step."""

    SLACK = "slack"
    """What the SLO of the online sequences in the step leaves by the latency model."""
    TOKENS_LEFT = "tokens_left"
    """Whatever tokens the step may still have."""
    NONE = "none"


class VictimRule(StrEnum):
    """Which offline sequence makes room for an online one."""

    CHEAPEST = "cheapest"
    """Least to compute again per block, among equals the newest."""
    NEWEST = "newest"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoservePolicy:
    """What one policy decides; see the head of this file."""

    is_online_first: bool
    """Whether offline sequences are served, admitted and kept only after all online ones."""
    makes_room: bool
    """Whether a waiting online sequence takes the blocks of running offline ones."""
    budget: OfflineBudget
    ranks_by_priority: bool = True
    """Whether offline sequences come after online ones in the one order of service."""
    victim_rule: VictimRule = VictimRule.NEWEST
    margin_fixed: float | None = 1.2
    """By what predictions are multiplied; None: a closed loop says."""
    layers_between_safepoints: int | None = None
    """Fixed; None: as close as costs nothing."""
    has_safepoints: bool = False
    """Whether steps without online work can be given up."""
    yields_early: bool = False
    """Whether a step is given up not only for an arrival that would be late else, but for any that
    gains more time by it than the step loses."""
    bounds_mixed_steps: bool = False
    """Whether offline work adds to a step with online work, which cannot be given up, no more than
    an online arrival may be held, and nothing while it works on an online prompt; else all that the
    next tokens leave."""
    has_chunk: bool = False
    """Whether a step has at most CoserveOptions.chunk_tokens."""
    has_reserve: bool = False
    """Whether offline work leaves blocks free for a burst of online work."""
    is_fair: bool = False
    """Whether tenants share offline service by what they were served, instead of by arrival."""

    @property
    def admits_offline(self) -> bool:
        """Whether offline sequences ever run."""
        return self.budget is not OfflineBudget.NONE


POLICIES: Final[Mapping[Coserve, CoservePolicy]] = MappingProxyType(
    {
        Coserve.TIDESERVE: CoservePolicy(
            is_online_first=True,
            makes_room=True,
            budget=OfflineBudget.SLACK,
            victim_rule=VictimRule.CHEAPEST,
            margin_fixed=None,
            has_safepoints=True,
            yields_early=True,
            bounds_mixed_steps=True,
            has_reserve=True,
            is_fair=True,
        ),
        Coserve.CONSERVE: CoservePolicy(
            is_online_first=True,
            makes_room=True,
            budget=OfflineBudget.SLACK,
            has_safepoints=True,
            layers_between_safepoints=4,
        ),
        Coserve.ONLINE_ONLY: CoservePolicy(
            is_online_first=True, makes_room=False, budget=OfflineBudget.NONE
        ),
        Coserve.NON_PREEMPTIVE: CoservePolicy(
            is_online_first=False,
            makes_room=False,
            budget=OfflineBudget.TOKENS_LEFT,
            ranks_by_priority=False,
        ),
        Coserve.PRIORITY_RECOMPUTE: CoservePolicy(
            is_online_first=False, makes_room=False, budget=OfflineBudget.TOKENS_LEFT
        ),
        Coserve.FIXED_CHUNK: CoservePolicy(
            is_online_first=True,
            makes_room=True,
            budget=OfflineBudget.TOKENS_LEFT,
            has_chunk=True,
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoserveOptions:
    """How one engine serves online and offline sequences together."""

    policy: Coserve = Coserve.TIDESERVE
    ttft_slo_ns: int = NS_PER_S
    """From the arrival of an online sequence here to its first token."""
    tbt_slo_ns: int = 100 * NS_PER_MS
    """Between two tokens of an online sequence."""
    latency: LatencyModel = LATENCY_ASSUMED
    """How long steps take here, as profiled; followed from then on."""
    yield_ns_max: int | None = None
    """So long a step without online work may go on after it was asked to yield; as much offline
    work adds at most to a step that cannot yield. None: the TTFT SLO over HOLDS_PER_TTFT."""
    chunk_tokens: int = 256
    """Tokens of a step under fixed-chunk; vLLM's and Sarathi's usual sizes are 256 to 2,048."""
    reserve_share_max: float = 0.2
    """Of the pool, kept free for bursts of online work at most."""

    def __post_init__(self) -> None:
        for name in ("ttft_slo_ns", "tbt_slo_ns", "chunk_tokens"):
            require(getattr(self, name) > 0, f"{name} must be positive")
        require(self.yield_ns_max is None or self.yield_ns_max > 0, "yield_ns_max is not positive")
        require(0 <= self.reserve_share_max < 1, "reserve_share_max lies in 0..1")

    @property
    def rules(self) -> CoservePolicy:
        """What the policy decides."""
        return POLICIES[self.policy]

    @property
    def offline_hold_ns_max(self) -> int:
        """How long offline work may hold the engine while an online sequence waits."""
        return self.yield_ns_max or max(1, self.ttft_slo_ns // HOLDS_PER_TTFT)

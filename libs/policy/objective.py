"""What the paper's choice leaves out: what a change costs, and that more nodes will go.

Each candidate is charged, per request and averaged over a horizon H:

    latency + (T^2/2 + T * l_exe) / H                  a change that stalls everything for T
            + losses/s * nodes * (R^2/2 + R * l_exe) / D   a loss that stalls 1/D of it for R

because what arrives in a stall waits half of it on average and what runs waits all of it. A change
is made only for a gain of some per cent. Source: the idea of liveput (Parcae, NSDI 2024); the
formula is our own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from libs.kernel.units import NS_PER_S
from libs.policy.cost_model import weight_bytes_max
from libs.policy.model_profile import ModelProfile
from libs.policy.parallel_config import Candidate
from libs.policy.shapes import ReplicaShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveOptions:
    """Prices of change and of risk."""

    horizon_ns: int = 600 * NS_PER_S
    """How long a configuration is expected to last: traces lose a node every few minutes."""
    losses_per_node_hour: float = 0.6
    """74 losses in 10.6 h of about 12 nodes (Bamboo's g4dn trace, December 2021)."""
    gain_percent_min: int = 10
    """A change of shape must better the objective by this much."""
    link_bytes_per_s: int = 1_000_000_000
    """Until rates are measured."""
    group_setup_ns: int = NS_PER_S // 2
    """To form the new group; the artifact's constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the candidates are judged against."""

    shape_now: ReplicaShape | None
    nodes: int
    """Nodes that the candidates use."""
    link_bytes_per_s: int | None = None
    """As measured; None: as the options assume."""


def choose_with_foresight(
    found: Sequence[Candidate],
    profile: ModelProfile,
    situation: Situation,
    options: ObjectiveOptions,
) -> Candidate:
    """Choose among candidates that fit: those that keep up first, then the best objective.

    The present shape stays if it keeps up and nothing else is better by `gain_percent_min`.
    """
    feasible = [candidate for candidate in found if candidate.keeps_up]
    current = next((c for c in found if c.config.shape == situation.shape_now), None)
    if not feasible:
        best = max(found, key=lambda c: (c.requests_per_s, -c.latency_ns))
        if current is not None and not _is_gain(
            current.requests_per_s, best.requests_per_s, options
        ):
            return current
        return best
    scores = [(score_ns(c, profile, situation, options), c) for c in feasible]
    best_ns, best = min(scores, key=lambda row: (row[0], row[1].config.shape))
    if current is None or not current.keeps_up or best is current:
        return best
    current_ns = score_ns(current, profile, situation, options)
    return best if _is_gain(best_ns, current_ns, options) else current


def score_ns(
    candidate: Candidate,
    profile: ModelProfile,
    situation: Situation,
    options: ObjectiveOptions,
) -> float:
    """Return the mean latency over the horizon, change and losses included."""
    shape = candidate.config.shape
    running_ns = candidate.execution_ns
    stall_ns = stall_of_change_ns(profile, shape, situation, options)
    score = float(candidate.latency_ns)
    if situation.shape_now is not None and shape != situation.shape_now:
        score += _delay(stall_ns, running_ns) / options.horizon_ns
    losses_per_ns = options.losses_per_node_hour / (3_600 * NS_PER_S)
    share = 1 / candidate.config.replicas
    return score + losses_per_ns * situation.nodes * _delay(stall_ns, running_ns) * share


def stall_of_change_ns(
    profile: ModelProfile,
    shape: ReplicaShape,
    situation: Situation,
    options: ObjectiveOptions,
) -> int:
    """Return T: every worker fetches its weights anew and the group forms. An upper bound."""
    rate = situation.link_bytes_per_s or options.link_bytes_per_s
    return options.group_setup_ns + weight_bytes_max(profile, shape) * NS_PER_S // rate


def _delay(stall_ns: int, running_ns: int) -> float:
    return stall_ns * (stall_ns / 2 + running_ns)


def _is_gain(smaller: float, larger: float, options: ObjectiveOptions) -> bool:
    """Whether the smaller value lies below the larger by the least gain that counts."""
    return smaller * 100 < larger * (100 - options.gain_percent_min)

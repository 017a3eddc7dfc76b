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
class Foresight:
    """Judges candidates against what runs now and what is expected to happen."""

    profile: ModelProfile
    options: ObjectiveOptions
    shape_now: ReplicaShape | None
    nodes: int
    """Nodes that the candidates use."""
    link_bytes_per_s: int | None = None
    """As measured; None: as the options assume."""

    def choose(self, found: Sequence[Candidate]) -> Candidate:
        """Choose among candidates that fit: those that keep up first, then the best score.

        The present shape stays if it keeps up and nothing is better by `gain_percent_min`; where
        nothing keeps up, the same holds for throughput.
        """
        current = next((c for c in found if c.config.shape == self.shape_now), None)
        feasible = [candidate for candidate in found if candidate.keeps_up]
        if not feasible:
            best = max(found, key=lambda c: (c.requests_per_s, -c.latency_ns))
            if current is None or self._is_less(current.requests_per_s, best.requests_per_s):
                return best
            return current
        scores = [(self.score_ns(candidate), candidate) for candidate in feasible]
        best_ns, best = min(scores, key=lambda row: (row[0], row[1].config.shape))
        if current is None or not current.keeps_up:
            return best
        return best if self._is_less(best_ns, self.score_ns(current)) else current

    def score_ns(self, candidate: Candidate) -> float:
        """Return the mean latency over the horizon, change and losses included."""
        config = candidate.config
        stall_ns = self.stall_ns(config.shape)
        # What arrives in a stall waits half of it on average, what runs waits all of it.
        delay = stall_ns * (stall_ns / 2 + candidate.execution_ns)
        score = float(candidate.latency_ns)
        if self.shape_now is not None and config.shape != self.shape_now:
            score += delay / self.options.horizon_ns
        losses_per_ns = self.options.losses_per_node_hour / (3_600 * NS_PER_S)
        return score + losses_per_ns * self.nodes * delay / config.replicas

    def stall_ns(self, shape: ReplicaShape) -> int:
        """Return T: every worker fetches its weights anew and the group forms. An upper bound."""
        rate = self.link_bytes_per_s or self.options.link_bytes_per_s
        weight_bytes = weight_bytes_max(self.profile, shape)
        return self.options.group_setup_ns + weight_bytes * NS_PER_S // rate

    def _is_less(self, smaller: float, larger: float) -> bool:
        """Whether the smaller value lies below the larger by the least gain that counts."""
        return smaller * 100 < larger * (100 - self.options.gain_percent_min)

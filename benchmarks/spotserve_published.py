"""What SpotServe (ASPLOS'24) published: Figure 6 for all cells, its artifact for GPT-20B."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.simulator.spot.setting import PolicyName


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCell:
    """One model on one trace."""

    p99_gain_over_reparallelize: float
    """P99 of the baseline over that of SpotServe; Figure 6."""
    p99_gain_over_reroute: float
    seconds: Mapping[PolicyName, tuple[float, float]]
    """Average and P99 latency by policy, where the artifact has them."""

    def p99_gain(self, policy: PolicyName) -> float | None:
        """Return how many times the P99 of SpotServe this policy's is; None: not published."""
        match policy:
            case PolicyName.REPARALLELIZE:
                return self.p99_gain_over_reparallelize
            case PolicyName.REROUTE:
                return self.p99_gain_over_reroute
            case PolicyName.SPOTSERVE:
                return 1.0
            case PolicyName.ON_DEMAND | PolicyName.TIDESERVE:
                return None


def _cell(
    over_reparallelize: float, over_reroute: float, seconds: tuple[float, ...] = ()
) -> PublishedCell:
    """Seconds: averages of reparallelize, reroute, spotserve, then their P99."""
    policies = (PolicyName.REPARALLELIZE, PolicyName.REROUTE, PolicyName.SPOTSERVE)
    pairs = zip(seconds[:3], seconds[3:], strict=True)
    return PublishedCell(
        p99_gain_over_reparallelize=over_reparallelize,
        p99_gain_over_reroute=over_reroute,
        seconds=dict(zip(policies, pairs, strict=False)),
    )


PUBLISHED: Final[Mapping[tuple[str, str], PublishedCell]] = {
    ("opt-6.7b", "A_S"): _cell(2.48, 3.01),
    ("opt-6.7b", "B_S"): _cell(2.52, 5.84),
    ("opt-6.7b", "A_S+O"): _cell(2.23, 1.97),
    ("opt-6.7b", "B_S+O"): _cell(3.76, 1.03),
    ("gpt-20b", "A_S"): _cell(1.33, 1.11, (32.05, 26.33, 23.52, 61.29, 51.01, 46.11)),
    ("gpt-20b", "B_S"): _cell(1.52, 2.67, (27.07, 47.57, 23.32, 56.28, 99.12, 37.08)),
    ("gpt-20b", "A_S+O"): _cell(1.34, 1.04, (32.66, 30.37, 23.42, 65.82, 50.73, 49.01)),
    ("gpt-20b", "B_S+O"): _cell(2.19, 1.30, (31.92, 24.58, 20.72, 73.26, 43.24, 33.39)),
    ("llama-30b", "A_S"): _cell(1.40, 3.97),
    ("llama-30b", "B_S"): _cell(1.61, 9.13),
    ("llama-30b", "A_S+O"): _cell(1.34, 2.14),
    ("llama-30b", "B_S+O"): _cell(2.43, 2.27),
}
ON_DEMAND_SECONDS: Final[Mapping[int, tuple[float, float]]] = {
    3: (141.5, 253.3),
    4: (98.0, 175.3),
    6: (29.1, 43.5),
    8: (24.6, 34.5),
}
"""GPT-20B on so many on-demand nodes, average and P99: measured with the artifact's old batching;
its Figure 7 draws them 4.5 and 9 s lower."""

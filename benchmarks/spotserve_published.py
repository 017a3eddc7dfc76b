"""What SpotServe (ASPLOS'24) published: Figure 6 for all cells, its artifact for GPT-20B."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.simulator.spot.setting import PolicyName, Setting


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """What was published for one run; None: nothing."""

    avg_s: float | None = None
    p99_s: float | None = None
    p99_over_spotserve: float | None = None
    usd_per_1k_tokens: float | None = None


def published_of(setting: Setting) -> PublishedRow:
    """Look up what the paper or its artifact says of a run under the paper's arrivals."""
    policy, trace = setting.policy, setting.spot_trace
    if setting.arrivals != Setting(policy=policy).arrivals:
        return PublishedRow()
    is_spotserve_20b = policy is PolicyName.SPOTSERVE and setting.model == "gpt-20b"
    if setting.on_demand_nodes is not None:
        if not is_spotserve_20b or setting.on_demand_nodes not in ON_DEMAND_SECONDS:
            return PublishedRow()
        measured = ON_DEMAND_SECONDS[setting.on_demand_nodes]
        usd = ON_DEMAND_USD_PER_1K_TOKENS[setting.on_demand_nodes]
        return PublishedRow(avg_s=measured[0], p99_s=measured[1], usd_per_1k_tokens=usd)
    cell = PUBLISHED.get((setting.model, trace))
    if cell is None:
        return PublishedRow()
    avg_s, p99_s = cell.seconds.get(policy, (None, None))
    return PublishedRow(
        avg_s=avg_s,
        p99_s=p99_s,
        p99_over_spotserve=cell.p99_gain(policy),
        usd_per_1k_tokens=SPOT_USD_PER_1K_TOKENS.get(trace) if is_spotserve_20b else None,
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
SPOT_USD_PER_1K_TOKENS: Final[Mapping[str, float]] = {
    "A_S": 0.0218,
    "B_S": 0.0190,
    "A_S+O": 0.0273,
    "B_S+O": 0.0287,
}
"""Figure 7, GPT-20B, by the formula of the artifact's script: 640 tokens a request, the prompt
included, and as many requests as the rate makes in the time."""
ON_DEMAND_USD_PER_1K_TOKENS: Final[Mapping[int, float]] = {
    3: 0.0146,
    4: 0.0194,
    6: 0.0291,
    8: 0.0388,
}
"""The same on so many on-demand nodes."""

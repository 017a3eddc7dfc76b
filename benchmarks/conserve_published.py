"""What ConServe (arXiv 2410.01228) published, to be put beside simulated figures.

Its throughputs are of offline work in v2 and of both tides in v1. Its baselines are those of these
policies: Non-Preemptive, and Sarathi-P, which is fixed-chunk with preemption.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedGoal:
    """A figure of the paper as a ratio between two policies of one cell."""

    figure: str
    source: str
    column: str
    """A column of the rows."""
    of: str
    """The policy that it is divided by, or that is divided by it where lower is better."""
    is_lower_better: bool
    value: float


GOALS: Final = (
    PublishedGoal(
        figure="total throughput over online serving",
        source="v1, abstract",
        column="total_tok_s",
        of="online-only",
        is_lower_better=False,
        value=2.35,
    ),
    PublishedGoal(
        figure="offline throughput over preemptive co-serving",
        source="v2, abstract",
        column="offline_tok_s",
        of="fixed-chunk",
        is_lower_better=False,
        value=2.2,
    ),
    PublishedGoal(
        figure="tail TTFT below preemptive co-serving",
        source="v2, abstract (2.9 for tail latency)",
        column="online_ttft_p99_ms",
        of="fixed-chunk",
        is_lower_better=True,
        value=2.9,
    ),
    PublishedGoal(
        figure="tail TBT below preemptive co-serving",
        source="v2, abstract (2.9 for tail latency)",
        column="online_tbt_p99_ms",
        of="fixed-chunk",
        is_lower_better=True,
        value=2.9,
    ),
    PublishedGoal(
        figure="offline throughput over non-preemptive",
        source="v2, 70B (1,553 of 1,995 tok/s)",
        column="offline_tok_s",
        of="non-preemptive",
        is_lower_better=False,
        value=0.78,
    ),
)
OFFLINE_TOK_S: Final[Mapping[tuple[str, str], float]] = {
    ("llama-3.1-70b", "conserve"): 1553.0,
    ("llama-3.1-70b", "non-preemptive"): 1995.0,
    ("llama-3.1-70b", "fixed-chunk"): 895.0,
    ("llama-3.1-8b", "conserve"): 11366.0,
    ("llama-3.1-8b", "fixed-chunk"): 8810.0,
}
"""By model and policy, on four H100s for 70B; under BurstGPT's arrivals and LongBench's prompts."""
ONLINE_P99_MS: Final[Mapping[tuple[str, str], tuple[float, float]]] = {
    ("llama-3.1-8b", "conserve"): (523.0, 73.0),
    ("llama-3.1-8b", "fixed-chunk"): (1399.0, 375.0),
}
"""TTFT and TBT, from the ablation."""

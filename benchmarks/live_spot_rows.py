"""What a run of the live comparison showed, and the rows that are published; pure arithmetic."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from libs.contracts.handover_record import HandoverState, HandoverStory
from libs.contracts.placement import Policy
from libs.kernel.units import MIB, milliseconds

PARTS: Final[Mapping[HandoverState, str]] = {
    HandoverState.STOPPING: "stop_and_send_kv",
    HandoverState.STAGING: "make_room",
    HandoverState.FORMING: "form_group",
    HandoverState.LOADING: "load_weights",
    HandoverState.COPYING: "copy_kv_beside_decoding",
    HandoverState.WAITING: "wait_for_the_stop",
    HandoverState.ACTIVATING: "activate",
    HandoverState.RELEASING: "release_sessions",
    HandoverState.DROPPING: "drop_weights_and_kv",
    HandoverState.RESUMING: "resume",
    HandoverState.ABANDONING: "abandon",
}
"""What is being done in each state of a hand-over, as the table names it."""
RE_PREFILL: Final = "re_prefill"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSeen:
    """One request of a run, for whoever wants to look behind a percentile."""

    sent_s: float
    ttft_ms: float | None
    """None: there was no token."""
    latency_ms: float
    pause_max_ms: float
    """The longest between two of its tokens."""
    is_ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy in one pair."""

    policy: Policy
    pair: int
    requests: int
    failed: int
    ttft_p99_ms: float
    latency_p50_ms: float
    latency_p99_ms: float
    gap_max_ms: float
    """The longest pause between two tokens of one stream."""
    tokens_recomputed: int
    """Computed by all workers together beyond what the answers needed."""
    prefill_tokens_per_s: float
    """Of one prompt alone, before the run."""
    weight_bytes_from_peers: int
    weight_bytes_from_disk: int
    kv_bytes_moved: int
    stall_ms_total: float
    """From stop to release, over all hand-overs: how long sessions stood still."""
    parts_ms: Mapping[str, float]
    """Time in each part of all hand-overs; tideserve and spotserve go on decoding in some."""
    parts_stalled_ms: Mapping[str, float]
    """The share of it in which the sources stood still and no target served yet."""
    handovers: int
    shapes: tuple[str, ...]
    seen: tuple[RequestSeen, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy over all pairs: medians, and the failures of all together."""

    policy: str
    ttft_p99_ms: float
    latency_p99_ms: float
    tokens_recomputed: int
    failed: int
    latency_p50_ms: float
    gap_max_ms: float
    stall_ms_total: float
    parts_ms: Mapping[str, float]
    parts_stalled_ms: Mapping[str, float]
    weight_mib_from_peers: float
    weight_mib_from_disk: float
    kv_mib_moved: float
    latency_p99_ms_all: tuple[float, ...]
    latency_p99_ratio_to_tideserve: float | None
    """Median over the pairs of this policy's P99 by that of tideserve in the same pair."""


def row_of(policy: Policy, runs: Sequence[Run]) -> Row:
    """Sum one policy's runs up; at least one of them must be its own."""
    own = [run for run in runs if run.policy is policy]
    best = {run.pair: run for run in runs if run.policy is Policy.TIDESERVE}
    ratios = [run.latency_p99_ms / best[run.pair].latency_p99_ms for run in own if run.pair in best]

    def median(value: Callable[[Run], float]) -> float:
        return round(statistics.median(value(run) for run in own), 1)

    def medians(values: Callable[[Run], Mapping[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for run in own for name in values(run))
        return {
            name: round(statistics.median(values(run).get(name, 0.0) for run in own), 1)
            for name in names
        }

    return Row(
        policy=policy.value,
        ttft_p99_ms=median(lambda run: run.ttft_p99_ms),
        latency_p99_ms=median(lambda run: run.latency_p99_ms),
        tokens_recomputed=round(median(lambda run: run.tokens_recomputed)),
        failed=sum(run.failed for run in own),
        latency_p50_ms=median(lambda run: run.latency_p50_ms),
        gap_max_ms=median(lambda run: run.gap_max_ms),
        stall_ms_total=median(lambda run: run.stall_ms_total),
        parts_ms=medians(lambda run: run.parts_ms),
        parts_stalled_ms=medians(lambda run: run.parts_stalled_ms),
        weight_mib_from_peers=median(lambda run: run.weight_bytes_from_peers / MIB),
        weight_mib_from_disk=median(lambda run: run.weight_bytes_from_disk / MIB),
        kv_mib_moved=median(lambda run: run.kv_bytes_moved / MIB),
        latency_p99_ms_all=tuple(run.latency_p99_ms for run in own),
        latency_p99_ratio_to_tideserve=round(statistics.median(ratios), 3) if ratios else None,
    )


def parts_of(stories: Iterable[HandoverStory], *, is_stalled_only: bool) -> dict[str, float]:
    """Add up, in ms, how long the hand-overs were in each of their states.

    `is_stalled_only` counts from the stop of the sources until their sessions are released and the
    targets serve, as HandoverStory.stall_ns does: what was done before or after cost no session.
    """
    parts_ns: dict[str, int] = dict.fromkeys(PARTS.values(), 0)
    for story in stories:
        stall_begins = next(
            (m.entered_at_unix_ns for m in story.moments if m.state is HandoverState.STOPPING), 0
        )
        stall_ends = stall_begins + story.stall_ns
        for moment, after in pairwise(story.moments):
            begins, ends = moment.entered_at_unix_ns, after.entered_at_unix_ns
            if is_stalled_only:
                begins, ends = max(begins, stall_begins), min(ends, stall_ends)
            parts_ns[PARTS[moment.state]] += max(0, ends - begins)
    return {name: round(milliseconds(ns), 1) for name, ns in parts_ns.items() if ns}

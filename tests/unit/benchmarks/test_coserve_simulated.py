"""The policies of co-serving against one another on slices in virtual time."""

from functools import cache

import pytest

from benchmarks.coserve_load import LoadOptions, offline_backlog, online_load, online_trace
from benchmarks.coserve_rows import CoserveRow, SliceResult, Slos, row_of
from benchmarks.coserve_simulated import SimulatedEngine, Variant
from libs.engine.scheduler import SchedulerOptions
from libs.engine.scheduling.coserve import Coserve
from libs.kernel.units import NS_PER_MS, NS_PER_S, NS_PER_US
from libs.policy.latency_model import LatencyModel
from services.gpu_worker.checkpoint_options import NO_ROOM

MODEL = LatencyModel(
    step_ns=20 * NS_PER_MS,
    row_ns=1500 * NS_PER_US,
    pair_prefilled_ns=500,
    token_attended_ns=4000,
    sequence_ns=500 * NS_PER_US,
)
"""About 100M parameters on one core."""
VOCABULARY = 16_000
LOAD = LoadOptions(requests=120, slices=1)


@cache
def slos() -> Slos:
    """What online requests alone feel, and a little more."""
    loose = Slos(ttft_ns=NS_PER_S, tbt_ns=NS_PER_S)
    alone = row_of("", [served(Coserve.ONLINE_ONLY, loose)], slos=loose)
    return Slos(
        ttft_ns=round(1.05 * alone.online_ttft_p99_ms * NS_PER_MS),
        tbt_ns=round(1.05 * alone.online_tbt_p99_ms * NS_PER_MS),
    )


@cache
def row(policy: Coserve) -> CoserveRow:
    return row_of(policy.value, [served(policy, slos())], slos=slos())


def served(policy: Coserve, slos: Slos) -> SliceResult:
    """Serve 120 online requests at 30 % of capacity. Equal steps deviate next to nothing: in so few
    requests the P99 is one burst, and what happens by chance in it is no property of a policy."""
    engine = SimulatedEngine(
        options=SchedulerOptions(
            step_tokens_max=256,
            sequences_max=64,
            block_tokens=16,
            blocks_total=683,
            context_tokens_max=2048,
            eos_token_ids=frozenset(),
            layers=12,
        ),
        room=NO_ROOM,
        vocabulary_size=VOCABULARY,
        latency=MODEL,
        deviation=0.01,
    )
    online = online_load(online_trace(LOAD), LOAD, tokens_per_s=150, vocabulary_size=VOCABULARY)
    return engine.serve(
        Variant(name=policy.value, policy=policy),
        online.slices[0],
        slos=slos,
        backlog=offline_backlog(LOAD, vocabulary_size=VOCABULARY, name="0"),
    )


def test_online_latency_stays_near_that_of_online_requests_alone() -> None:
    alone, both = row(Coserve.ONLINE_ONLY), row(Coserve.TIDESERVE)
    assert both.online_ttft_p99_ms < 1.1 * alone.online_ttft_p99_ms
    assert both.online_tbt_p99_ms < 1.1 * alone.online_tbt_p99_ms


def test_offline_work_fills_what_online_requests_leave() -> None:
    assert row(Coserve.ONLINE_ONLY).offline_tok_s == 0
    assert row(Coserve.TIDESERVE).total_tok_s > 2.35 * row(Coserve.ONLINE_ONLY).total_tok_s
    assert row(Coserve.TIDESERVE).total_tok_s > 0.85 * row(Coserve.NON_PREEMPTIVE).total_tok_s


def test_without_preemption_online_requests_wait_for_the_backlog() -> None:
    assert row(Coserve.NON_PREEMPTIVE).online_ttft_p99_ms > (
        5 * row(Coserve.TIDESERVE).online_ttft_p99_ms
    )


@pytest.mark.parametrize("other", [Coserve.CONSERVE, Coserve.PRIORITY_RECOMPUTE])
def test_no_other_way_keeps_more_promises(other: Coserve) -> None:
    assert row(Coserve.TIDESERVE).slo_attainment >= row(other).slo_attainment
    assert row(Coserve.TIDESERVE).online_ttft_p99_ms <= 1.02 * row(other).online_ttft_p99_ms


def test_the_same_slice_is_served_in_the_same_way() -> None:
    first = row(Coserve.TIDESERVE)
    row.cache_clear()
    assert row(Coserve.TIDESERVE) == first

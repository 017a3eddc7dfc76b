"""The policies side by side on the same bursts, in virtual time: what co-serving is for."""

from dataclasses import replace
from functools import cache

import pytest

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import SchedulerOptions
from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from libs.engine.scheduling.tally import CoserveTally
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS, NS_PER_S
from tests.properties.engine.coserving import EOS, LATENCY, Engine

HORIZON_NS = 10 * NS_PER_S
OFFLINE_WAITING = 6
STEADY = CoserveOptions(
    ttft_slo_ns=60 * NS_PER_MS, tbt_slo_ns=15 * NS_PER_MS, latency=LATENCY, reserve_share_max=0.1
)
OPTIONS = SchedulerOptions(
    step_tokens_max=64,
    sequences_max=16,
    block_tokens=8,
    blocks_total=120,
    context_tokens_max=400,
    eos_token_ids=EOS,
    layers=24,
)


def a_sequence(name: str, *, prompt: int, answer: int, priority: int) -> SequenceRequest:
    seed = sum(name.encode()) * 7919
    return SequenceRequest(
        sequence_id=name,
        prompt_token_ids=tuple((seed + index * 31) % 47 + 3 for index in range(prompt)),
        sampling=SamplingOptions(),
        stop=StopOptions(max_tokens=answer, ignore_eos=True),
        priority=priority,
    )


@cache
def outcome(policy: Coserve) -> CoserveTally:
    """Serve bursts of online work, and offline work without end, for the horizon."""
    engine = Engine(options=replace(OPTIONS, coserve=replace(STEADY, policy=policy)))
    rng = Rng(7).child("arrivals")
    burst_at_ns, online, offline = 0, 0, 0
    while engine.now_ns < HORIZON_NS:
        while burst_at_ns <= engine.now_ns:
            for _ in range(rng.randint(1, 6)):
                request = a_sequence(
                    f"on{online}", prompt=rng.randint(4, 40), answer=rng.randint(2, 20), priority=0
                )
                engine.add(request)
                online += 1
            burst_at_ns += rng.randint(50, 450) * NS_PER_MS
        while engine.scheduler.load().offline_waiting < OFFLINE_WAITING:
            engine.add(a_sequence(f"off{offline}", prompt=60, answer=20, priority=-10))
            offline += 1
        if engine.step() is None:
            engine.now_ns = burst_at_ns
    return engine.scheduler.tally


def attainment(tally: CoserveTally) -> float:
    met = tally.ttft_met + tally.tbt_met
    return met / (met + tally.ttft_missed + tally.tbt_missed)


def test_online_work_hardly_notices_the_offline_work_beside_it() -> None:
    alone, beside = outcome(Coserve.ONLINE_ONLY), outcome(Coserve.TIDESERVE)
    assert alone.tokens_offline == 0
    assert attainment(beside) >= attainment(alone) - 0.01


def test_offline_work_gets_most_of_what_it_had_where_nobody_minds_the_slo() -> None:
    """Target: at least 78 % of a scheduler that ignores the SLO (ConServe's own figure)."""
    harvest = outcome(Coserve.TIDESERVE).tokens_offline
    assert harvest >= 0.78 * outcome(Coserve.NON_PREEMPTIVE).tokens_offline


@pytest.mark.parametrize(
    "policy", [Coserve.NON_PREEMPTIVE, Coserve.PRIORITY_RECOMPUTE, Coserve.FIXED_CHUNK]
)
def test_without_the_slo_in_the_budget_online_work_suffers(policy: Coserve) -> None:
    """The control: the load is such that the baselines miss the SLO."""
    assert attainment(outcome(policy)) < attainment(outcome(Coserve.TIDESERVE)) - 0.02

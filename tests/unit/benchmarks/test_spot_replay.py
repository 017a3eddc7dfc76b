"""A live run that went exactly as the simulator says is predicted exactly; no other is."""

from dataclasses import replace

import pytest

from benchmarks.spot_replay import (
    THIS_MACHINE,
    LiveOptions,
    SeenRequest,
    SeenRun,
    compare,
    simulation_of,
    trace_of,
)
from libs.contracts.placement import Policy
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.model_profile import LayerTimes, ModelBytes, ModelProfile
from services.simulator.spot.run import run_spot

OPTIONS = LiveOptions(
    nodes=4,
    prompt_tokens=64,
    output_tokens=16,
    grace_ms=8_000,
    strikes=((8.0, "notice"), (20.0, "addition"), (30.0, "notice")),
)
PROFILE = ModelProfile(
    name="tiny",
    source="made up",
    size=ModelBytes(
        layers=4, heads=4, kv_heads=4, layer_bytes=1_000_000, embedding_bytes=0, head_bytes=0,
        kv_bytes_per_token_layer=256,
    ),
    times_by_shards={
        1: LayerTimes(prefill_ns=((1, 50 * NS_PER_MS),), decode_ns=((1, 10 * NS_PER_MS),))
    },
    embedding_ns=((1, 0),),
    hop_prefill_ns=0,
    hop_decode_ns=0,
    prompt_tokens=64,
    output_tokens=16,
)  # fmt: skip


def as_simulated(policy: Policy) -> SeenRun:
    sent = tuple(SeenRequest(sent_s=float(s), latency_ms=1.0, is_ok=True) for s in range(0, 40, 2))
    run = SeenRun(policy=policy, pair=1, seen=sent)
    simulated = run_spot(simulation_of(run, OPTIONS, PROFILE))
    seen = tuple(
        SeenRequest(
            sent_s=(request.arrived_at_ns - simulated.begins_at_ns) / NS_PER_S,
            latency_ms=(request.latency_ns or 0) / NS_PER_MS,
            is_ok=True,
        )
        for request in simulated.requests
    )
    return run.model_copy(update={"seen": seen})


def test_the_nodes_of_a_replay_come_and_go_as_they_did() -> None:
    spans = trace_of(OPTIONS, end_at_ns=100 * NS_PER_S).spans
    gone_s = [None if s.gone_at_ns is None else s.gone_at_ns / NS_PER_S for s in spans]
    assert gone_s == [16, 38, None, None, None]
    assert spans[4].usable_at_ns == 20 * NS_PER_S + THIS_MACHINE.launch_ns


@pytest.mark.parametrize("policy", [Policy.TIDESERVE, Policy.REPARALLELIZE])
def test_a_run_as_the_simulator_has_it_is_predicted_exactly(policy: Policy) -> None:
    row = compare(as_simulated(policy), OPTIONS, PROFILE)
    assert row.measured.requests_ok == 20
    assert row.p99_error == pytest.approx(0, abs=0.01)
    assert row.tokens_per_s_error == pytest.approx(0, abs=0.01)


def test_a_profile_of_another_machine_predicts_wrongly() -> None:
    slow = replace(PROFILE, margin_percent=330)
    assert compare(as_simulated(Policy.TIDESERVE), OPTIONS, slow).p99_error > 0.5

"""A measurement serves the scheduler as it is, and the planner as a profile of every shape."""

import pytest

from libs.kernel.errors import ConfigError
from libs.policy.assumed_profile import CPU, GPU, assumed_latency_model
from libs.policy.cost_model import batch_times
from libs.policy.latency_model import LatencyModel, StepWork
from libs.policy.measured_profile import (
    Hardware,
    MeasuredProfile,
    json_of_measured_profile,
    measured_profile_of_json,
    planning_profile,
    planning_profile_of_json,
)
from libs.policy.model_profile import ModelBytes, json_of_profile
from libs.policy.paper_profiles import GPT_20B
from libs.policy.shapes import ReplicaShape

LATENCY = LatencyModel(
    step_ns=20e6, row_ns=1.1e6, pair_prefilled_ns=2e3, token_attended_ns=1.5e3, sequence_ns=0.4e6
)
SIZE = ModelBytes(
    layers=12,
    heads=12,
    kv_heads=4,
    layer_bytes=25_000_000,
    embedding_bytes=49_000_000,
    head_bytes=49_000_000,
    kv_bytes_per_token_layer=2048,
)


def a_measurement(*, size: ModelBytes | None = SIZE) -> MeasuredProfile:
    return MeasuredProfile(
        model="llama",
        model_digest="0123456789abcdef",
        hardware=Hardware(device="cpu", name="a processor", threads=1, dtype="float32"),
        latency=LATENCY,
        error=0.03,
        step_tokens_max=512,
        context_tokens_max=2048,
        size=size,
        rounds=9,
        measured_at="2026-01-01T00:00:00+00:00",
    )


def test_a_measurement_is_read_as_it_was_written() -> None:
    for measured in (a_measurement(), a_measurement(size=None)):
        assert measured_profile_of_json(json_of_measured_profile(measured)) == measured


def test_a_damaged_measurement_is_refused_by_field() -> None:
    text = json_of_measured_profile(a_measurement()).replace('"threads"', '"therads"')
    with pytest.raises(ConfigError, match="threads"):
        measured_profile_of_json(text)


def test_the_planner_predicts_a_single_worker_as_it_was_measured() -> None:
    profile = planning_profile(a_measurement())
    times = batch_times(profile, ReplicaShape(stages=1, shards=1), batch=1)
    prompt = StepWork().with_prefill(tokens=profile.prompt_tokens, tokens_before=0)
    assert times.prefill_ns == pytest.approx(LATENCY.predict_ns(prompt), rel=1e-3)
    middle = profile.prompt_tokens + profile.output_tokens // 2
    decode = StepWork().with_decode(tokens_before=middle)
    assert times.step_ns == pytest.approx(LATENCY.predict_ns(decode), rel=1e-3)


def test_prompts_of_a_batch_take_as_many_steps_as_they_need() -> None:
    profile = planning_profile(a_measurement())
    of_batch = dict(profile.times_by_shards[1].prefill_ns)
    # 2 prompts of 256 fill one step of 512; 4 take two, each with its fixed cost.
    assert of_batch[4] == pytest.approx(2 * of_batch[2], rel=0.01)


def test_shards_divide_what_was_measured_and_pay_for_their_all_reduces() -> None:
    profile = planning_profile(a_measurement())
    assert sorted(profile.times_by_shards) == [1, 2, 4]
    alone, two = (dict(profile.times_by_shards[m].decode_ns)[64] for m in (1, 2))
    assert two == pytest.approx(alone / 2 + 2 * CPU.reduce_ns, rel=0.01)


def test_a_model_that_cannot_be_cut_is_not_to_be_planned() -> None:
    with pytest.raises(ConfigError, match="cannot be cut"):
        planning_profile(a_measurement(size=None))


def test_the_planner_reads_measurements_and_profiles_written_by_hand() -> None:
    measured = a_measurement()
    assert planning_profile_of_json(json_of_measured_profile(measured)) == planning_profile(
        measured
    )
    assert planning_profile_of_json(json_of_profile(GPT_20B)) == GPT_20B
    for text in ("", "[]", "{", '{"latency": 1}'):
        with pytest.raises(ConfigError, match="profile"):
            planning_profile_of_json(text)


def test_the_speed_of_recomputing_is_that_of_a_full_step() -> None:
    full = StepWork().with_prefill(tokens=512, tokens_before=0)
    expected = 512 * 10**9 / LATENCY.predict_ns(full)
    assert a_measurement().prefill_tokens_per_s == pytest.approx(expected, rel=0.01)


def test_an_assumed_step_of_a_gpu_costs_the_same_until_multiplying_is_the_bound() -> None:
    size = ModelBytes(
        layers=32, heads=32, kv_heads=8, layer_bytes=436_000_000, embedding_bytes=10**9,
        head_bytes=10**9, kv_bytes_per_token_layer=4096,
    )  # fmt: skip
    latency = assumed_latency_model(size=size, bytes_per_parameter=2, roofline=GPU)
    assert 100 < latency.knee_rows < 400
    few, many = StepWork(rows=2), StepWork(rows=100)
    assert latency.predict_ns(many) == latency.predict_ns(few)
    assert latency.predict_ns(StepWork(rows=2048)) > 5 * latency.predict_ns(few)

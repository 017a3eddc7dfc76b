"""The cost model against the paper's own numbers, and by hand where the paper has none."""

import math

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.cost_model import batch_times, execution_ns, queueing_ns, weight_bytes_max
from libs.policy.model_profile import (
    ModelProfile,
    json_of_profile,
    profile_of_json,
    time_ns,
)
from libs.policy.paper_profiles import GPT_20B, LLAMA_30B, OPT_6_7B
from libs.policy.shapes import ReplicaShape, layer_range


@pytest.mark.parametrize(
    ("profile", "stages", "shards", "seconds"),
    [(OPT_6_7B, 1, 4, "5.447"), (GPT_20B, 3, 4, "14.373"), (LLAMA_30B, 2, 8, "17.540")],
)
def test_table_1_of_the_paper_is_predicted_to_the_digit(
    profile: ModelProfile, stages: int, shards: int, seconds: str
) -> None:
    shape = ReplicaShape(stages=stages, shards=shards)
    assert f"{execution_ns(profile, shape, batch=1) / NS_PER_S:.3f}" == seconds


def test_another_shape_does_not_give_the_number_of_the_table() -> None:
    wrong = execution_ns(GPT_20B, ReplicaShape(stages=2, shards=8), batch=1)
    assert f"{wrong / NS_PER_S:.3f}" != "14.373"


@pytest.mark.parametrize(
    ("profile", "gib"), [(OPT_6_7B, 25.0), (GPT_20B, 74.5), (LLAMA_30B, 111.8)]
)
def test_the_sizes_of_table_1_are_those_of_the_profiles(profile: ModelProfile, gib: float) -> None:
    assert profile.size.weight_bytes / 2**30 == pytest.approx(gib, abs=0.05)


def test_prefill_grows_with_the_prompt_and_decoding_does_not() -> None:
    shape = ReplicaShape(stages=3, shards=4)
    short = batch_times(GPT_20B, shape, batch=1, prompt_tokens=256)
    long = batch_times(GPT_20B, shape, batch=1, prompt_tokens=512)
    assert long.prefill_ns == pytest.approx(2 * short.prefill_ns, abs=2)
    assert long.step_ns == short.step_ns


def test_times_between_two_measured_batches_lie_on_the_line_between_them() -> None:
    table = ((1, 100), (2, 200), (4, 260))
    assert time_ns(table, 1) == 100
    assert time_ns(table, 3) == 230
    assert time_ns(table, 8) == 380
    assert time_ns(table, 0.5) == 100


def test_a_batch_beyond_the_table_never_costs_less_than_the_last_measured() -> None:
    assert time_ns(((1, 300), (2, 200)), 8) == 200


def test_waiting_equals_the_formula_of_one_server() -> None:
    # M/M/1 at load 0.5 waits as long as it serves.
    wait_ns = queueing_ns(requests_per_s=0.5, slots=1, service_ns=NS_PER_S)
    assert wait_ns == pytest.approx(NS_PER_S, rel=1e-9)


def test_waiting_has_no_value_where_more_arrives_than_is_served() -> None:
    assert queueing_ns(requests_per_s=1.0, slots=1, service_ns=NS_PER_S) is None
    assert queueing_ns(requests_per_s=0.99, slots=1, service_ns=NS_PER_S) is not None


def test_bursts_wait_longer_than_steady_arrivals() -> None:
    steady = queueing_ns(requests_per_s=3, slots=4, service_ns=NS_PER_S, arrival_variation=0.1)
    bursts = queueing_ns(requests_per_s=3, slots=4, service_ns=NS_PER_S, arrival_variation=36)
    assert steady is not None
    assert bursts is not None
    assert bursts > 10 * steady


def test_the_worker_with_most_weights_is_the_one_that_counts() -> None:
    most = 15 * GPT_20B.size.layer_bytes / 4
    assert weight_bytes_max(GPT_20B, ReplicaShape(stages=3, shards=4)) == math.ceil(most)


@pytest.mark.parametrize(("layers", "stages"), [(7, 3), (4, 4), (44, 3), (5, 1)])
def test_stages_share_all_layers_once_and_evenly(layers: int, stages: int) -> None:
    ranges = [layer_range(layers=layers, stages=stages, stage=stage) for stage in range(stages)]
    assert [layer for part in ranges for layer in part] == list(range(layers))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_a_profile_is_the_same_after_writing_and_reading() -> None:
    assert profile_of_json(json_of_profile(GPT_20B)) == GPT_20B


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{}", "name"),
        ("no json", "JSON"),
        (json_of_profile(GPT_20B).replace('"heads": 64', '"heads": 0'), "heads"),
        (json_of_profile(GPT_20B).replace('"heads": 64', '"heads": "many"'), "heads"),
    ],
)
def test_a_wrong_profile_is_one_line_that_names_the_field(text: str, field: str) -> None:
    with pytest.raises(ConfigError, match=field) as refusal:
        profile_of_json(text)
    assert "\n" not in str(refusal.value)


def test_a_step_of_the_paper_takes_milliseconds() -> None:
    step_ns = batch_times(GPT_20B, ReplicaShape(stages=3, shards=4), batch=1).step_ns
    assert step_ns == pytest.approx(1.1 * (1.968 * 45 + 0.2) * NS_PER_MS, rel=1e-6)

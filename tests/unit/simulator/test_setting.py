"""What a person asks for becomes a run, or one clear error."""

import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from libs.policy.shapes import ReplicaShape
from services.simulator.spot.options import EngineKind
from services.simulator.spot.run import run_spot
from services.simulator.spot.setting import PolicyName, Setting, run_options

A_SETTING = Setting(policy=PolicyName.SPOTSERVE)


def gaps_of(setting: Setting) -> list[int]:
    instants = [arrival.at_ns for arrival in run_options(setting).arrivals]
    return [after - before for before, after in pairwise(instants)]


def variation(gaps: list[int]) -> float:
    return statistics.pstdev(gaps) / statistics.fmean(gaps)


def test_the_papers_arrivals_are_nearly_even_and_have_its_rate() -> None:
    gaps = gaps_of(A_SETTING)
    assert variation(gaps) == pytest.approx(0.046, abs=0.01)
    assert NS_PER_S / statistics.fmean(gaps) == pytest.approx(0.35, rel=0.02)


@pytest.mark.parametrize(("arrivals", "expected"), [("poisson", 1.0), ("gamma:4", 4.0)])
def test_other_arrivals_are_as_uneven_as_their_name_says(arrivals: str, expected: float) -> None:
    setting = replace(A_SETTING, arrivals=arrivals, requests_per_s=20.0)
    assert variation(gaps_of(setting)) == pytest.approx(expected, rel=0.1)


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    assert run_options(A_SETTING) == run_options(A_SETTING)
    assert run_options(A_SETTING) != run_options(replace(A_SETTING, seed=2))


@pytest.mark.parametrize(
    ("model", "stages", "shards", "batch"),
    [("gpt-20b", 2, 8, 4), ("opt-6.7b", 2, 4, 2), ("llama-30b", 4, 8, 4)],
)
def test_rerouting_is_fixed_to_what_is_best_for_ten_nodes(
    model: str, stages: int, shards: int, batch: int
) -> None:
    options = run_options(Setting(policy=PolicyName.REROUTE, model=model))
    assert options.plan.search.shape_only == ReplicaShape(stages=stages, shards=shards)
    assert options.batch_max == batch


def test_baselines_hear_of_a_loss_when_it_happens() -> None:
    grace = {p: run_options(Setting(policy=p)).grace_ns / NS_PER_S for p in PolicyName}
    assert grace[PolicyName.REROUTE] == grace[PolicyName.REPARALLELIZE] == 0.5
    assert grace[PolicyName.SPOTSERVE] == grace[PolicyName.TIDESERVE] == 30


def test_on_demand_takes_the_fewest_nodes_that_keep_up() -> None:
    nodes = {
        model: len(run_options(Setting(policy=PolicyName.ON_DEMAND, model=model)).trace.spans)
        for model in ("opt-6.7b", "gpt-20b", "llama-30b")
    }
    assert nodes == {"opt-6.7b": 3, "gpt-20b": 6, "llama-30b": 4}


def test_nodes_beyond_those_of_the_spot_market_count_as_on_demand() -> None:
    trace = run_options(replace(A_SETTING, spot_trace="A_S+O")).trace
    # Over A_S: 3 nodes from 120 s, 2 from 240, none from 360, 1 from 690 to 900, 2 from 1290.
    expected = 3 * 120 + 2 * 120 + 1 * (900 - 690) + 2 * (1380 - 1290)
    assert trace.on_demand_node_ns == expected * NS_PER_S
    assert run_options(A_SETTING).trace.on_demand_node_ns == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"spot_trace": "C_S"}, "C_S"),
        ({"model": "gpt-2"}, "no 'gpt-2'; there are opt-6.7b"),
        ({"hardware": "tpu"}, "no 'tpu'; there are g4dn"),
        ({"arrivals": "gamma"}, "none of paper, poisson, gamma:CV"),
        ({"arrivals": "gamma:x"}, "none of paper, poisson, gamma:CV"),
        ({"arrivals": "gamma:0"}, "must be above 0"),
        ({"requests_per_s": -1.0}, "above 0"),
        ({"requests_per_s": 1e9}, "above 0"),
        ({"launch_s": -1.0}, "launch"),
        ({"workload": Path("nowhere.csv")}, "nowhere.csv"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        run_options(replace(A_SETTING, **changes))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0,add,a\n5,add,b\n4,add,c\n", ":3: this line is earlier"),
        ("0,add,a\n-5,add,b\n", ":2: time is not a number of 0 or more"),
        ("0,add,a\n5,remove,b\n", ":2: b is removed but is not there"),
        ("0,add,a\n5,add,a\n", ":2: a is added but is there already"),
        ("0,add,a\n5,add\n", ":2: not a time, add or remove, and a node"),
        ("0,add,a\n5,gone,a\n", ":2: the second field is neither"),
        ('[0, "add", {"nodes": ["a"]}]\n[5, "rem', ":2: not JSON"),
        ("when,what\n", ":1: not a known trace format"),
        ("", ":1: the file is empty"),
    ],
)
def test_a_broken_trace_is_refused_with_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "spot.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"spot.csv{told}"):
        run_options(replace(A_SETTING, spot_trace=str(file)))


def test_a_model_that_fits_no_number_of_nodes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "small.csv"
    file.write_text("0,add,a\n0,add,b\n60000,remove,a\n")
    options = run_options(replace(A_SETTING, spot_trace=str(file)))
    with pytest.raises(ConfigError, match=r"small: never has nodes enough for gpt-20b: .* 12"):
        run_spot(options)


def test_recorded_requests_keep_their_lengths_and_end_with_the_trace(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    lines = [
        f'{{"timestamp": {at_ms}, "input_length": {size}, "output_length": 7, "hash_ids": [1]}}'
        for at_ms, size in ((0, 100), (1_000, 200), (9_999_999, 300))
    ]
    file.write_text("\n".join(lines))
    options = run_options(replace(A_SETTING, workload=file))
    assert [(a.prompt_tokens, a.output_tokens) for a in options.arrivals] == [(100, 7), (200, 7)]


def test_continuous_batching_is_not_given_prefills_in_the_shadow_of_others() -> None:
    continuous = run_options(Setting(policy=PolicyName.TIDESERVE))
    assert continuous.engine is EngineKind.CONTINUOUS
    assert not continuous.profile.is_prefill_amortised
    assert run_options(A_SETTING).profile.is_prefill_amortised

"""The readers find in the published files what their sources say about them."""

import os
from itertools import islice
from pathlib import Path

import pytest

from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from loadgen.options import RunOptions
from loadgen.plan import planned
from loadgen.trace_summary import summarise_trace
from loadgen.traces.availability import AvailabilityTrace
from loadgen.traces.detect import read_availability, read_requests
from loadgen.traces.scenarios import scenario

DATA = Path(os.environ.get("TIDESERVE_PUBLISHED_TRACES", "/nonexistent"))
MINUTE_NS = 60 * NS_PER_S

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="TIDESERVE_PUBLISHED_TRACES names no folder with the published traces"
)


def nodes(name: str) -> AvailabilityTrace:
    return read_availability(str(DATA / "spot_traces" / name), rng=Rng(0))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("trace_0304_real.txt", "A_S"),
        ("trace_0506_real.txt", "B_S"),
        ("trace_0304_ondemand.txt", "A_S+O"),
        ("trace_0506_ondemand.txt", "B_S+O"),
        ("trace_0304_workload.txt", "A'_S+O"),
        ("trace_0506_workload.txt", "B'_S+O"),
    ],
)
def test_the_built_in_scenarios_are_those_of_the_files(file: str, name: str) -> None:
    built_in = scenario(name)
    assert nodes(file).lives() == built_in.lives()
    assert nodes(file).end_at_ns == built_in.end_at_ns


@pytest.mark.parametrize(("name", "start", "end"), [("A_S", 212, 234), ("B_S", 322, 339)])
def test_the_scenarios_are_stretches_of_the_full_trace(name: str, start: int, end: int) -> None:
    whole = nodes("spotserve_g4dn_full.csv")
    window = whole.window(start_ns=start * MINUTE_NS, end_ns=end * MINUTE_NS)
    delayed = window.added_later(delay_ns=120 * NS_PER_S)
    assert delayed.counts() == scenario(name).counts()


def test_the_full_spot_trace_has_the_changes_that_its_source_counts() -> None:
    trace = nodes("spotserve_g4dn_full.csv")
    added = [node for change in trace.changes for node in change.added]
    removals = [len(change.removed) for change in trace.changes if change.removed]
    assert (len(added), sum(removals)) == (79, 74)
    assert (len(removals), sum(count > 1 for count in removals)) == (48, 17)
    span_ns = trace.end_at_ns - trace.changes[0].at_ns
    assert trace.node_ns() / span_ns == pytest.approx(12.8, abs=0.05)


def test_the_demand_of_the_workload_trace_is_read() -> None:
    rates = [change.required_requests_per_s for change in nodes("trace_0304_workload.txt").changes]
    assert [rate for rate in rates if rate is not None] == [0.8, 0.6]


def test_the_azure_code_trace_has_its_known_rate_and_burstiness() -> None:
    summary = summarise_trace(str(DATA / "workloads/AzureLLMInferenceTrace_code.csv"), seed=0)
    assert summary["rows"] == 8819
    assert summary["requests_per_s"] == pytest.approx(2.57, abs=0.005)
    assert summary["arrival_cv"] == pytest.approx(13, abs=0.5)
    assert summary["idle_seconds_share"] == pytest.approx(0.73, abs=0.005)


def test_the_mooncake_trace_has_its_known_prefix_hit_rate() -> None:
    summary = summarise_trace(str(DATA / "workloads/mooncake_synthetic_trace.jsonl"), seed=0)
    assert summary["rows"] == 3993
    assert summary["prefix_hit_rate"] == pytest.approx(0.64, abs=0.005)


def test_the_tables_of_lengths_rates_and_operators_are_read() -> None:
    table = "workloads/sharegpt_8k_filtered_stats_llama2_tokenizer.csv"
    assert summarise_trace(str(DATA / table), seed=0)["rows"] == 30_731
    rates = "spot_traces/spotserve_fig8_arrival_rates.csv"
    assert summarise_trace(str(DATA / rates), seed=0)["rows"] == 19
    times = "workloads/vidur_h100_llama-2-7b-mlp.csv"
    assert summarise_trace(str(DATA / times), seed=0)["rows"] == 1044


def test_a_trace_of_a_large_model_is_fitted_to_a_small_one_with_its_prefixes() -> None:
    path = DATA / "workloads/mooncake_synthetic_trace.jsonl"
    options = RunOptions(
        trace=path,
        prompt_divisor=64,
        prompt_tokens_max=1_000,
        speed=10.0,
    )
    load = planned(options)
    made = list(islice(load.requests, 200))
    assert max(len(one.prompt) for one in made) <= 1_000
    assert [one.arrival_ns for one in made] == sorted(one.arrival_ns for one in made)
    recorded = list(islice(read_requests(path), 200))
    by_block = [request.block_ids[0] for request in recorded]
    by_prompt = [one.prompt[:8] for one in made]
    assert [by_block.index(block) for block in by_block] == [
        by_prompt.index(prompt) for prompt in by_prompt
    ]
    assert len(set(by_block)) < 200
    assert load.workload.tally.requests_shortened > 0

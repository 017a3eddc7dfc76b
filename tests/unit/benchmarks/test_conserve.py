"""The simulated comparison with ConServe: its loads and its ratios."""

import json
from itertools import islice
from pathlib import Path
from statistics import mean

import pytest

from benchmarks.conserve import goals_of
from benchmarks.conserve_load import (
    OFFLINE,
    WORKLOADS,
    Bounds,
    ConserveLoad,
    offline_backlog,
    online_requests,
)
from benchmarks.conserve_tables import Row
from libs.kernel.errors import ConfigError

WIDE = Bounds(context_tokens_max=131_072, vocabulary_size=1000)
NARROW = Bounds(context_tokens_max=512, vocabulary_size=1000)


@pytest.mark.parametrize("workload", sorted(WORKLOADS))
def test_online_requests_are_the_same_for_one_seed_and_fit_the_context(workload: str) -> None:
    load = ConserveLoad(workload=workload, requests=50)
    requests = online_requests(load, NARROW)
    assert requests == online_requests(load, NARROW)
    assert requests != online_requests(ConserveLoad(workload=workload, requests=50, seed=2), NARROW)
    assert len(requests) == 50
    assert all(len(r.prompt) + r.output_tokens < 512 for r in requests)
    assert [r.arrival_ns for r in requests] == sorted(r.arrival_ns for r in requests)


def test_lengths_drawn_have_the_means_of_the_published_tables() -> None:
    backlog = list(islice(offline_backlog(ConserveLoad(), WIDE), 400))
    assert mean(len(r.prompt) for r in backlog) == pytest.approx(2340, rel=0.15)
    assert mean(r.output_tokens for r in backlog) == pytest.approx(439, rel=0.1)


def test_a_file_with_shared_prefixes_gives_prompts_that_share_them(tmp_path: Path) -> None:
    trace = tmp_path / "mooncake.jsonl"
    row = {"input_length": 1100, "output_length": 5}
    rows = [{"timestamp": n, **row, "hash_ids": [0, 1, 2 + n]} for n in range(2)]
    trace.write_text("".join(json.dumps(each) + "\n" for each in rows))
    first, second = online_requests(ConserveLoad(trace=trace, requests=2), WIDE)
    assert first.prompt[:1024] == second.prompt[:1024]
    assert first.prompt[1024:] != second.prompt[1024:]


def test_unknown_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="'lunch' is none of azure-code, mooncake"):
        online_requests(ConserveLoad(workload="lunch"), WIDE)
    with pytest.raises(ConfigError, match=f"none of {', '.join(OFFLINE)}"):
        next(offline_backlog(ConserveLoad(offline="lunch"), WIDE))


def a_row(policy: str, **figures: float) -> Row:
    cell: Row = {"model": "m", "workload": "w", "offline": "o", "policy": policy}
    return {
        **cell,
        "online_ttft_p99_ms": 100.0,
        "online_tbt_p99_ms": 10.0,
        "offline_tok_s": 50.0,
        "total_tok_s": 100.0,
        **figures,
    }


def test_a_goal_is_a_ratio_that_grows_as_tideserve_gets_better() -> None:
    rows = [
        a_row("tideserve", total_tok_s=300.0, online_ttft_p99_ms=50.0),
        a_row("online-only", offline_tok_s=0.0),
        a_row("fixed-chunk", online_ttft_p99_ms=200.0),
        {**a_row("fixed-chunk", online_ttft_p99_ms=5.0), "model": "another"},
    ]
    found = {goal["figure"]: goal["tideserve"] for goal in goals_of(rows)}
    assert found["total throughput over online serving"] == 3.0
    assert found["tail TTFT below preemptive co-serving"] == 4.0
    assert "offline throughput over non-preemptive" not in found

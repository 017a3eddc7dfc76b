"""Records of the live benchmark, simulated: the same run again, on the same bounds."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.conserve_record import read_live_record
from benchmarks.conserve_replay import COMPARED, ReplayedRow, replay
from libs.kernel.units import NS_PER_MS, NS_PER_US
from libs.policy.latency_model import LatencyModel

STEPS = LatencyModel(
    step_ns=4 * NS_PER_MS,
    row_ns=160 * NS_PER_US,
    pair_prefilled_ns=400,
    token_attended_ns=3600,
    sequence_ns=450 * NS_PER_US,
)
Figures = Mapping[tuple[str, str], float]


def a_record(figures: Figures, *, slower: float = 1.0) -> dict[str, object]:
    """Six requests in two slices on the bundled model; figures by policy and column."""
    rows = [
        {
            "policy": policy,
            "prediction_bias": 1.0,
            **{column: figures.get((policy, column), 1.0) for column in COMPARED},
        }
        for policy in ("tideserve", "online-only")
    ]
    load = {"requests": "6", "slices": "2", "seed": "7", "trace": "None"}
    return {
        "rows": rows,
        "capacity_tok_s": 1400.0,
        "calibration": {
            "latency": asdict(STEPS.times(slower)),
            "latency_error": 0.03,
            "ttft_slo_ms": 950.0,
            "tbt_slo_ms": 87.0,
        },
        "record": {
            "commit": "abc",
            "options": {
                "load": load,
                "model": "tide-tiny",
                "load_share": 0.3,
                "kv_mib": 16,
                "step_tokens_max": 256,
            },
        },
    }


def replayed(record: dict[str, object], folder: Path) -> list[ReplayedRow]:
    path = folder / "live.json"
    path.write_text(json.dumps(record))
    return replay(read_live_record(path), report=lambda _: None)


@pytest.mark.timeout(600)
def test_a_run_that_went_as_simulated_is_near_and_one_of_slower_steps_is_not(
    tmp_path: Path,
) -> None:
    first = replayed(a_record({}), tmp_path)
    figures = {(row.policy, row.column): row.simulated for row in first}
    assert figures["tideserve", "offline_tok_s"] > 0
    assert figures["online-only", "offline_tok_s"] == 0

    again = replayed(a_record(figures), tmp_path)
    assert all(row.is_near for row in again)
    assert {row.error for row in again} == {0.0, None}

    slower = {
        (row.policy, row.column): row for row in replayed(a_record(figures, slower=2.0), tmp_path)
    }
    assert not slower["tideserve", "offline_tok_s"].is_near
    assert not slower["online-only", "online_ttft_p99_ms"].is_near

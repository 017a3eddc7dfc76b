"""`tideserve bench coserve` on a real engine, as small as it gets: the form of every row."""

import json
from pathlib import Path

from services.launcher.main import run

ROW = {
    "policy",
    "online_ttft_p50_ms",
    "online_ttft_p99_ms",
    "online_tbt_p99_ms",
    "offline_tok_s",
    "total_tok_s",
    "slo_attainment",
}


def test_two_policies_serve_the_same_requests_and_only_one_of_them_harvests(
    tmp_path: Path,
) -> None:
    file = tmp_path / "coserve.json"
    arguments = ["--model", "tide-tiny", "--requests", "4", "--slices", "1", "--profile-s", "1"]
    arguments += ["--offline-only-s", "1", "--kv-mib", "16", "--load-share", "0.3"]
    arguments += ["--step-tokens-max", "64"]
    arguments += ["--policy", "tideserve", "--policy", "online-only", "--json", str(file)]
    assert run(["bench", "coserve", *arguments]) == 0
    record = json.loads(file.read_text())
    rows = {row["policy"]: row for row in record["rows"]}
    assert set(rows) == {"tideserve", "online-only"}
    for row in rows.values():
        assert set(row) >= ROW
        assert row["online_requests"] == 4
        assert 0 < row["online_ttft_p50_ms"] <= row["online_ttft_p99_ms"]
    assert rows["online-only"]["offline_tok_s"] == 0 < rows["tideserve"]["offline_tok_s"]
    assert rows["online-only"]["ttft_p99_ratio"] is None
    assert len(rows["tideserve"]["ttft_p99_ratio"]) == 3
    assert record["capacity_tok_s"] > 0 < record["offline_only_tok_s"]
    assert record["record"]["command"].endswith(f"--json {file}") or record["record"]["commit"]


def test_a_policy_that_is_none_and_one_without_its_baseline_are_refused(tmp_path: Path) -> None:
    for policies in (["--policy", "abacus", "--policy", "online-only"], ["--policy", "tideserve"]):
        assert run(["bench", "coserve", "--model", "tide-tiny", *policies]) == 64

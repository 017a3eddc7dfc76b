"""The demo, as `make demo` runs it."""

import json
import subprocess
import sys
from pathlib import Path


def test_the_demo_loses_nothing_and_leaves_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    command = [sys.executable, "-m", "services.launcher", "demo", "--report-folder", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ok"] is True
    assert summary["requests_online"] == 48
    assert summary["kills_without_notice"] == 2
    assert (summary["lost"], summary["duplicated_tokens"], summary["changed_tokens"]) == (0, 0, 0)
    assert summary["tokens_per_s"] > 0
    assert 0 < summary["ttft_p50_ms"] <= summary["ttft_p99_ms"]
    assert "Nothing was lost, repeated or changed." in result.stdout
    assert (folder / "report.md").is_file()
    assert (folder / "throughput.svg").is_file()

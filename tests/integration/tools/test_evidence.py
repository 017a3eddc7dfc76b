"""`make evidence`: a part that fails costs itself, and is named at the end."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "tools" / "evidence.sh"
STAND_IN = """#!/usr/bin/env bash
[[ "$*" == *"--part load"* || $2 == spot-cost ]] && exit 70
while [[ $1 != --json ]]; do shift; done
touch "$2"
"""
"""Fails two parts, and leaves the record of every other."""


def evidence(folder: Path, **options: str) -> tuple[int, list[str], set[str]]:
    """Return the exit code, what was said, and the parts that left a record."""
    stand_in = folder / "tideserve"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    told = {"BIN": str(folder), "EVIDENCE": str(folder / "records"), **options}
    done = subprocess.run(
        ["bash", str(SCRIPT)], env={"PATH": os.environ["PATH"], **told}, capture_output=True,
        text=True,
    )  # fmt: skip
    records = (folder / "records").glob("*.json")
    parts = {record.stem.split("-", maxsplit=3)[3] for record in records}
    return done.returncode, done.stderr.splitlines(), parts


def test_parts_that_fail_are_named_at_the_end_and_stop_no_other(tmp_path: Path) -> None:
    code, said, parts = evidence(tmp_path)
    assert code == 1
    assert said[-1].startswith("evidence: failed: spotserve-load spot-cost;")
    assert parts == {
        *(f"spotserve-{part}" for part in ("cells", "cost", "arrivals", "batching", "ablation")),
        "conserve",
    }
    assert said[0].startswith("evidence: 1 of 8: spotserve-cells -> ")


def test_what_needs_a_file_is_run_where_the_file_is_named(tmp_path: Path) -> None:
    options = {"LONG_TRACE": "trace.csv", "LIVE": "live.json", "PROFILE": "profile.json"}
    _, said, parts = evidence(tmp_path, **options)
    assert {"spotserve-long", "spot-replay"} < parts
    assert "spot-cost-long" in said[-1]


def test_single_parts_can_be_run_again_and_all_well_is_exit_code_0(tmp_path: Path) -> None:
    code, _, parts = evidence(tmp_path, PARTS="spotserve-cost conserve")
    assert (code, parts) == (0, {"spotserve-cost", "conserve"})
    code, said, _ = evidence(tmp_path, PARTS="no-such-part")
    assert code == 1
    assert "no-such-part" in said[-1]

"""Where a figure comes from: without this no result is worth keeping."""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from libs.runtime.profile_cache import processor_name
from libs.runtime.whole_file import write_whole_file


def record_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser for a benchmark's options that takes --json, the file for its record."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the record; default: stdout")
    return parser


def provenance(module: str) -> dict[str, object]:
    """Return command, commit, date, interpreter and processor of the benchmark now running."""
    program = Path(sys.argv[0])
    # Run as a module or by `tideserve bench`, it is repeated in the same way.
    command = f"python -m {module}" if program.suffix == ".py" else program.name
    return {
        "command": " ".join((command, *sys.argv[1:])),
        "commit": _git_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cpu": f"{processor_name()}, {os.cpu_count()} cores",
    }


def write_record(record: Mapping[str, object], path: Path | None) -> None:
    """Write what a benchmark found as JSON: to the file, or to stdout without one."""
    text = json.dumps(record, indent=2) + "\n"
    if path is None:
        print(text, end="")
    else:
        write_whole_file(path, text)


def _git_commit() -> str:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()

"""How a result came about: what every published table carries beside its rows."""

import datetime
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path


def record(
    command: str, options: Mapping[str, object], *, packages: tuple[str, ...]
) -> dict[str, object]:
    """Return command, options, commit, date and machine, and the versions of these packages."""
    return {
        "command": command,
        "options": dict(options),
        "commit": _git_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "cpu": _cpu_name(),
    }


def command_of(module: str, arguments: Sequence[str] | None) -> str:
    """Return the command that `main` of this benchmark was given: None means sys.argv."""
    told = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", "-m", f"benchmarks.{module}", *told])


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


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()

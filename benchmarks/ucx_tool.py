"""UCX's own measure of UCX, as a bound for what Python makes of it."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

ITERATIONS: Final = 20
TIMEOUT_S: Final = 30


def measure_ucx_tool(sizes: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Yield size and GB/s of tagged messages that one process sends itself over UCX's TCP.

    Yields nothing where `ucx_perftest` is not installed. The process talks to itself because the
    tool's server would listen on every interface.
    """
    tool = _find_tool()
    if tool is None:
        return
    environment = {
        **os.environ,
        "UCX_TLS": "tcp",
        "UCX_NET_DEVICES": "lo",
        "LD_LIBRARY_PATH": str(tool.parents[1] / "lib"),
    }
    for size in sizes:
        command = [str(tool), "-l", "-t", "tag_bw", "-s", str(size)]
        command += ["-n", str(ITERATIONS), "-w", "2", "-f"]
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        )
        # The last line: iterations, three times in us, average and overall MB/s, messages/s.
        mib_s = float(re.split(r"\s+", answer.stdout.strip().splitlines()[-1].strip())[5])
        yield size, round(mib_s * 2**20 / 1e9, 3)


def _find_tool() -> Path | None:
    found = shutil.which("ucx_perftest")
    if found is not None:
        return Path(found)
    package = find_spec("libucx")
    folders = package.submodule_search_locations if package is not None else None
    for folder in folders or ():
        tool = Path(folder) / "bin" / "ucx_perftest"
        if tool.exists():
            return tool
    return None

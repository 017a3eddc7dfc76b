"""SkyPilot's spot traces: one JSON object with the instances that are up at each tick.

`{"metadata": {"gap_seconds": g, ...}, "data": [n, ...]}`: n instances from tick i on, i.e. from
i times g seconds; the trace ends one gap after its last tick. Source: skypilot-org/spot-traces.
"""

from pathlib import Path
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import MIB
from loadgen.traces.availability import AvailabilityTrace, from_counts
from loadgen.traces.json_lines import parse_json
from loadgen.traces.lines import TraceLine
from loadgen.traces.node_table import NODES_MAX

FILE_BYTES_MAX: Final = 64 * MIB


def read_skypilot(path: Path, *, rng: Rng) -> AvailabilityTrace:
    """Return the trace; which instance goes is drawn from `rng`.

    Raises: ConfigError that names the file and the field at fault.
    """
    whole = _whole_file(path)
    document = parse_json(whole)
    metadata = document.get("metadata") if isinstance(document, dict) else None
    ticks = document.get("data") if isinstance(document, dict) else None
    if not isinstance(metadata, dict) or not isinstance(ticks, list) or not ticks:
        raise whole.error("not an object with metadata and a list of data")
    gap_ns = whole.seconds_ns(metadata.get("gap_seconds"), name="metadata.gap_seconds")
    if gap_ns <= 0:
        raise whole.error("metadata.gap_seconds is not above 0")
    counts = []
    for index, value in enumerate(ticks):
        count = whole.count(value, name=f"data[{index}]")
        if count > NODES_MAX:
            raise whole.error(f"data[{index}] is more than {NODES_MAX} instances")
        counts.append((index * gap_ns, count))
    return from_counts(
        counts,
        name=path.stem,
        source=path.name,
        end_at_ns=len(counts) * gap_ns,
        rng=rng.child("nodes gone"),
    )


def _whole_file(path: Path) -> TraceLine:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes")
        return TraceLine(path=path, number=1, text=path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path}:1: not UTF-8 text") from None

"""Tells the formats apart by the first line of a file, and reads each by its reader."""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from loadgen.arrivals import RateSegment
from loadgen.lengths import Lengths
from loadgen.traces import azure, burstgpt, length_table, operator_times
from loadgen.traces.arrival_rates import read_arrival_rates
from loadgen.traces.availability import AvailabilityTrace
from loadgen.traces.json_lines import parse_json
from loadgen.traces.lines import TraceError, TraceLine, first_line
from loadgen.traces.mooncake import read_mooncake
from loadgen.traces.node_table import read_node_counts, read_node_events
from loadgen.traces.requests import TraceRequest
from loadgen.traces.scenarios import SCENARIOS, scenario
from loadgen.traces.skypilot import read_skypilot
from loadgen.traces.spot_events import read_spot_events


class TraceFormat(StrEnum):
    """Every format that can be read."""

    AZURE = "azure"
    BURSTGPT = "burstgpt"
    MOONCAKE = "mooncake"
    LENGTH_TABLE = "length_table"
    ARRIVAL_RATES = "arrival_rates"
    SPOT_EVENTS = "spot_events"
    NODE_EVENTS = "node_events"
    NODE_COUNTS = "node_counts"
    SKYPILOT = "skypilot"
    OPERATOR_TIMES = "operator_times"


REQUEST_READERS: Final[Mapping[TraceFormat, Callable[[Path], Iterator[TraceRequest]]]] = {
    TraceFormat.AZURE: azure.read_azure,
    TraceFormat.BURSTGPT: burstgpt.read_burstgpt,
    TraceFormat.MOONCAKE: read_mooncake,
}
HEADERS: Final[Mapping[TraceFormat, frozenset[str]]] = {
    TraceFormat.AZURE: frozenset(azure.COLUMNS),
    TraceFormat.BURSTGPT: frozenset(
        (burstgpt.TIMESTAMP, burstgpt.REQUEST_TOKENS, burstgpt.RESPONSE_TOKENS)
    ),
    TraceFormat.LENGTH_TABLE: frozenset((length_table.PREFILL_TOKENS, length_table.DECODE_TOKENS)),
    TraceFormat.OPERATOR_TIMES: frozenset((operator_times.TOKENS, operator_times.TENSOR_PARALLEL)),
}


def detect(path: Path) -> TraceFormat:
    """Return the format of a file. Raises: TraceError that lists the known ones."""
    line = first_line(path)
    if line.text.startswith("{"):
        return _of_object(line)
    if line.text.startswith("["):
        return TraceFormat.SPOT_EVENTS
    fields = line.fields()
    for trace_format, columns in HEADERS.items():
        if columns <= set(fields):
            return trace_format
    if len(fields) == 3 and fields[1] in ("add", "remove"):
        return TraceFormat.NODE_EVENTS
    if len(fields) == 2 and (fields[1].isdigit() or fields[1] in ("count", "nodes")):
        return TraceFormat.NODE_COUNTS
    if all(_is_number(field) for field in fields if field):
        return TraceFormat.ARRIVAL_RATES
    raise _unknown(line)


def read_requests(path: Path) -> Iterator[TraceRequest]:
    """Return the requests of a file of any format that holds some, lazily.

    Raises: TraceError that names the line; ConfigError if the file holds something else.
    """
    trace_format = detect(path)
    reader = REQUEST_READERS.get(trace_format)
    if reader is None:
        raise ConfigError(f"{path}: {trace_format} holds no requests with arrivals")
    return reader(path)


def read_lengths(path: Path) -> Iterator[Lengths]:
    """Return the lengths of a table, or of a file of requests, lazily. Errors as above."""
    if detect(path) is TraceFormat.LENGTH_TABLE:
        return length_table.read_length_table(path)
    return (request.lengths for request in read_requests(path))


def read_rates(path: Path) -> Iterator[RateSegment]:
    """Return a table of arrival rates, lazily. Errors as above."""
    trace_format = detect(path)
    if trace_format is not TraceFormat.ARRIVAL_RATES:
        raise ConfigError(f"{path}: {trace_format} holds no arrival rates")
    return read_arrival_rates(path)


def read_availability(path_or_name: str, *, rng: Rng) -> AvailabilityTrace:
    """Return a built-in scenario, or the nodes of a file; `rng` chooses nodes that no trace names.

    Raises: TraceError that names the line; ConfigError if the file holds something else.
    """
    if path_or_name in SCENARIOS:
        return scenario(path_or_name)
    path = Path(path_or_name)
    match detect(path):
        case TraceFormat.SPOT_EVENTS:
            return read_spot_events(path)
        case TraceFormat.NODE_EVENTS:
            return read_node_events(path)
        case TraceFormat.NODE_COUNTS:
            return read_node_counts(path, rng=rng)
        case TraceFormat.SKYPILOT:
            return read_skypilot(path, rng=rng)
        case other:
            raise ConfigError(f"{path}: {other} says nothing about nodes")


def _of_object(line: TraceLine) -> TraceFormat:
    try:
        row = parse_json(line)
    except TraceError:
        return TraceFormat.SKYPILOT  # An object over several lines; its reader judges the whole.
    if isinstance(row, dict) and "timestamp" in row:
        return TraceFormat.MOONCAKE
    if isinstance(row, dict) and "data" in row:
        return TraceFormat.SKYPILOT
    raise _unknown(line)


def _unknown(line: TraceLine) -> TraceError:
    return line.error(f"not a known trace format ({', '.join(TraceFormat)})")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

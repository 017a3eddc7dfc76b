"""What a trace holds, in numbers: to choose one by, and to check a reader against its source."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S, seconds
from loadgen.arrivals import measure_arrivals
from loadgen.lengths import Lengths
from loadgen.report import percentile
from loadgen.traces.availability import AvailabilityTrace
from loadgen.traces.detect import (
    REQUEST_READERS,
    TraceFormat,
    detect,
    read_availability,
    read_lengths,
    read_rates,
    read_requests,
)
from loadgen.traces.operator_times import read_operator_times
from loadgen.traces.requests import TraceRequest
from loadgen.traces.scenarios import SCENARIOS

ROWS_MAX: Final = 5_000_000
"""Rows that a summary reads; a longer file is summarised by its beginning, and says so."""
DECIMALS: Final = 4

Summary = dict[str, object]


def summarise_trace(path_or_name: str, *, seed: int) -> Summary:
    """Return what a file or a built-in scenario holds.

    Raises: TraceError that names the line; ConfigError if it is no trace.
    """
    if path_or_name in SCENARIOS:
        trace = read_availability(path_or_name, rng=Rng(seed))
        return {"format": "scenario", "source": trace.source, **_availability(trace)}
    path = Path(path_or_name)
    trace_format = detect(path)
    head: Summary = {"format": trace_format.value}
    if trace_format in REQUEST_READERS:
        return {**head, **_requests(list(islice(read_requests(path), ROWS_MAX)))}
    if trace_format is TraceFormat.LENGTH_TABLE:
        return {**head, **_lengths(list(islice(read_lengths(path), ROWS_MAX)))}
    if trace_format is TraceFormat.ARRIVAL_RATES:
        return {**head, **_rates(path)}
    if trace_format is TraceFormat.OPERATOR_TIMES:
        rows = list(islice(read_operator_times(path), ROWS_MAX))
        return {**head, "rows": len(rows), "operators": sorted(rows[0].median_ns) if rows else []}
    return {**head, **_availability(read_availability(path_or_name, rng=Rng(seed)))}


def prefix_hit_rate(requests: Iterable[TraceRequest]) -> float:
    """Return the share of prefix blocks that an endless cache would have held; 0 without blocks."""
    known: set[int] = set()
    blocks = hits = 0
    for request in requests:
        blocks += len(request.block_ids)
        hits += sum(block_id in known for block_id in request.block_ids)
        known.update(request.block_ids)
    return hits / blocks if blocks else 0.0


def _requests(requests: list[TraceRequest]) -> Summary:
    summary = _lengths([request.lengths for request in requests])
    if len(requests) > 1 and requests[-1].arrival_ns > requests[0].arrival_ns:
        measured = measure_arrivals([request.arrival_ns for request in requests])
        summary |= {
            "span_s": round(seconds(measured.span_ns), DECIMALS),
            "requests_per_s": round(measured.rate_per_s, DECIMALS),
            "arrival_cv": round(measured.cv, DECIMALS),
            "peak_requests_in_a_second": measured.peak_per_s,
            "idle_seconds_share": round(measured.idle_seconds_share, DECIMALS),
        }
    hit_rate = prefix_hit_rate(requests)
    return summary | ({"prefix_hit_rate": round(hit_rate, DECIMALS)} if hit_rate else {})


def _lengths(lengths: list[Lengths]) -> Summary:
    summary: Summary = {"rows": len(lengths), "is_cut": len(lengths) == ROWS_MAX}
    if not lengths:
        return summary
    kinds = {
        "prompt_tokens": sorted(one.prompt_tokens for one in lengths),
        "output_tokens": sorted(one.output_tokens for one in lengths),
    }
    for name, ordered in kinds.items():
        summary[f"{name}_mean"] = round(sum(ordered) / len(ordered), DECIMALS)
        summary[f"{name}_p50"] = percentile(ordered, 50)
        summary[f"{name}_p99"] = percentile(ordered, 99)
        summary[f"{name}_max"] = ordered[-1]
    return summary


def _rates(path: Path) -> Summary:
    segments = list(islice(read_rates(path), ROWS_MAX))
    span_ns = sum(segment.duration_ns for segment in segments)
    expected = sum(s.rate_per_s * s.duration_ns / NS_PER_S for s in segments)
    return {
        "rows": len(segments),
        "span_s": seconds(span_ns),
        "requests_per_s_mean": round(expected / seconds(span_ns), DECIMALS) if span_ns else 0.0,
        "requests_per_s_max": max((s.rate_per_s for s in segments), default=0.0),
    }


def _availability(trace: AvailabilityTrace) -> Summary:
    counts = trace.counts()
    return {
        "span_s": seconds(trace.end_at_ns),
        "nodes_added": sum(len(change.added) for change in trace.changes),
        "nodes_removed": sum(len(change.removed) for change in trace.changes),
        "nodes_max": max((nodes for _, nodes in counts), default=0),
        "nodes_mean": round(trace.node_ns() / trace.end_at_ns, DECIMALS) if trace.end_at_ns else 0,
        "node_hours": round(seconds(trace.node_ns()) / 3600, DECIMALS),
        "nodes_from_s": [[seconds(at_ns), nodes] for at_ns, nodes in counts],
    }

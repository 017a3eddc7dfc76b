"""The report as tables for a terminal."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from libs.kernel.units import milliseconds, seconds
from loadgen.records import Outcome
from loadgen.report import Distribution, Report

OPEN_LIMIT = "-"


def report_tables(report: Report) -> RenderableType:
    """Return what is printed at the end of a run."""
    parts: list[RenderableType] = [_counts(report), _latencies(report)]
    if report.reasons:
        parts.append(_reasons(report))
    return Group(*parts)


def _counts(report: Report) -> Table:
    table = _table(f"load of {seconds(report.duration_ns):.1f} s", "", "")
    for outcome in Outcome:
        table.add_row(f"requests {outcome.value}", str(report.requests[outcome]))
    table.add_row("requests unsent", str(report.requests_unsent))
    table.add_row("requests ok per s", f"{report.per_s(report.requests[Outcome.OK]):.2f}")
    table.add_row("output tokens per s", f"{report.per_s(report.output_tokens):.1f}")
    table.add_row("most streams open", str(report.streams_open_most))
    table.add_row("within SLO", f"{report.attainment:.2%} ({_limits(report)})")
    table.add_row("goodput, requests per s", f"{report.per_s(report.requests_in_slo):.2f}")
    table.add_row("goodput, tokens per s", f"{report.per_s(report.output_tokens_in_slo):.1f}")
    return table


def _limits(report: Report) -> str:
    slo = report.slo
    limits = (
        ("TTFT", slo.ttft_ns),
        ("TPOT", slo.tpot_ns),
        ("TBT", slo.tbt_ns),
        ("end to end", slo.end_to_end_ns),
    )
    told = [f"{name} {milliseconds(limit):g} ms" for name, limit in limits if limit is not None]
    return ", ".join(told) or "no limits given: ended ok"


def _latencies(report: Report) -> Table:
    columns = ("count", "mean", "p50", "p90", "p95", "p99", "max")
    table = _table("latency in ms, nearest-rank percentiles", "", *columns)
    rows = (
        ("TTFT", report.ttft),
        ("TBT", report.tbt),
        ("TPOT", report.tpot),
        ("end to end", report.end_to_end),
        ("generator late", report.lateness),
    )
    for name, values in rows:
        table.add_row(name, str(values.count), *_cells(values))
    return table


def _cells(values: Distribution) -> list[str]:
    if not values.count:
        return [OPEN_LIMIT] * 6
    measured = (
        values.mean_ns,
        values.p50_ns,
        values.p90_ns,
        values.p95_ns,
        values.p99_ns,
        values.max_ns,
    )
    return [f"{milliseconds(value):.1f}" for value in measured]


def _reasons(report: Report) -> Table:
    table = _table("what did not end ok", "outcome", "reason", "count", "for example")
    for reason in report.reasons:
        example = f"{reason.example} ({reason.request_id})" if reason.request_id else reason.example
        table.add_row(reason.outcome, escape(reason.reason), str(reason.count), escape(example))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for number, column in enumerate(columns):
        is_number = number > 0 and column not in ("reason", "for example")
        table.add_column(column, justify="right" if is_number else "left")
    return table

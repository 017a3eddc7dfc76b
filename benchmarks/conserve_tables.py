"""The tables of the simulated comparison with ConServe, for people."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from rich.table import Table

Row: TypeAlias = dict[str, str | int | float | None]
COLUMNS: Final = {
    "TTFT P99 ms": "online_ttft_p99_ms",
    "/ alone": "ttft_p99_over_online_only",
    "TBT P99 ms": "online_tbt_p99_ms",
    "/ alone ": "tbt_p99_over_online_only",
    "offline tok/s": "offline_tok_s",
    "total tok/s": "total_tok_s",
    "/ alone  ": "total_over_online_only",
}
"""Heading and column; headings differ by spaces that nobody sees."""
CAUSES: Final = {
    "slowest TTFT ms": "slowest_ttft_ms",
    "alone": "slowest_alone_ms",
    "+ offline steps": "slowest_offline_steps_ms",
    "+ mixed steps": "slowest_mixed_steps_ms",
    "+ the rest": "slowest_rest_ms",
    "time: online": "time_online",
    "offline beside": "time_offline_beside",
    "offline alone": "time_offline_alone",
    "idle": "time_idle",
}
"""Likewise: sum of four for requests, and shares that add up to 1 for the engine."""


def policies_table(rows: Sequence[Row]) -> Table:
    """Show every policy of every cell."""
    return _table_of(COLUMNS, rows)


def causes_table(rows: Sequence[Row]) -> Table:
    """Show what held the slowest online requests longer than alone, and whose the time was."""
    return _table_of(CAUSES, rows)


def _table_of(columns: Mapping[str, str], rows: Sequence[Row]) -> Table:
    table = Table("model", "workload", "policy")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row["model"]),
            str(row["workload"]),
            str(row["policy"]),
            *(_number(row[column]) for column in columns.values()),
        )
    return table


def goals_table(goals: Sequence[Row]) -> Table:
    """Show what tideserve comes to beside what was published."""
    table = Table("model", "workload", "tideserve's")
    table.add_column("simulated", justify="right")
    table.add_column("published", justify="right")
    for row in goals:
        table.add_row(
            str(row["model"]),
            str(row["workload"]),
            str(row["figure"]),
            _number(row["tideserve"]),
            _number(row["published"]),
        )
    return table


def replay_table(rows: Sequence[Row]) -> Table:
    """Show what was measured and what is predicted of it."""
    table = Table("policy", "figure")
    for heading in ("live", "simulated", "error %", "live steps / predicted"):
        table.add_column(heading, justify="right")
    for row in rows:
        error = row["error"]
        table.add_row(
            str(row["policy"]),
            str(row["column"]),
            _number(row["live"]),
            _number(row["simulated"]),
            "" if error is None else f"{100 * float(error):+.0f}",
            _number(row["prediction_bias"]),
        )
    return table


def _number(value: str | float | None) -> str:
    if value is None:
        return ""
    number = float(value)
    return f"{number:.2f}" if number < 100 else f"{number:,.0f}"

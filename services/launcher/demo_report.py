"""Writes what the demo found: summary.json, report.md for people, throughput.svg beside it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from libs.kernel.units import NS_PER_MS, NS_PER_S, milliseconds, seconds
from services.launcher.demo_load import StreamRecord
from services.launcher.demo_strikes import Happening
from services.launcher.demo_timeline import HandoverSeen, ShapeSeen
from services.launcher.demo_verdict import Summary, compare

BUCKET_NS: Final = 250 * NS_PER_MS
WIDTH: Final = 860
HEIGHT: Final = 340
MARGIN: Final = 58
PAUSE_MARK: Final = " ⟂ "


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOutcome:
    """Everything the report tells of."""

    summary: Summary
    disturbed: Sequence[StreamRecord]
    undisturbed: Sequence[StreamRecord]
    happenings: Sequence[Happening]
    shapes: Sequence[ShapeSeen]
    handovers: Sequence[HandoverSeen]
    setting: str


def write_report(outcome: DemoOutcome, folder: Path) -> None:
    """Write the three files; the folder is created."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = json.dumps(outcome.summary.as_dictionary(), indent=1) + "\n"
    (folder / "summary.json").write_text(summary, encoding="utf-8")
    (folder / "report.md").write_text(render_report(outcome), encoding="utf-8")
    (folder / "throughput.svg").write_text(render_plot(outcome), encoding="utf-8")


def render_report(outcome: DemoOutcome) -> str:
    """Return the report as Markdown."""
    summary = outcome.summary
    start_ns = _start_ns(outcome)
    told = [
        *((happening.at_ns, f"**{happening.sentence}**") for happening in outcome.happenings),
        *((seen.at_ns, f"serving as {seen.shape}") for seen in outcome.shapes),
        *((seen.at_ns, seen.sentence) for seen in outcome.handovers),
    ]
    story = [f"- {seconds(at_ns - start_ns):.1f} s: {what}" for at_ns, what in sorted(told)]
    numbers = [f"| {name} | {value} |" for name, value in summary.as_dictionary().items()]
    return "\n".join(
        [
            "# TideServe demo",
            "",
            "**Nothing was lost.**" if summary.ok else "**Something was lost or changed.**",
            f"{summary.requests_online} streamed requests, greedy and seeded, over NATS and HTTP,"
            " were answered twice: undisturbed, and while nodes came and went. The answers were"
            " compared token for token (over HTTP, which carries no ids, text for text).",
            "",
            outcome.setting,
            "",
            "## What happened",
            "",
            *story,
            "",
            "![tokens per second](throughput.svg)",
            "",
            "## Numbers",
            "",
            "| field | value |",
            "| --- | --- |",
            *numbers,
            "",
            "## Streams",
            "",
            "| # | over | tokens chosen | tokens | first token ms | longest pause ms | equal |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *_rows(outcome),
            "",
            "## A greedy answer with the longest pause",
            "",
            *(f"> {line}" for line in interrupted_answer(outcome).splitlines()),
            "",
        ]
    )


def _rows(outcome: DemoOutcome) -> list[str]:
    rows = []
    for record, twin in zip(outcome.disturbed, outcome.undisturbed, strict=True):
        request = record.request
        verdict = "yes" if compare(record, twin).is_equal else f"NO {record.error or ''}"
        first = "" if record.ttft_ns is None else f"{milliseconds(record.ttft_ns):.0f}"
        tokens = record.tokens_reported or len(record.token_at_ns)
        rows.append(
            f"| {request.index} | {request.protocol} | {request.kind} | {tokens} | {first}"
            f" | {milliseconds(record.gap_ns_max):.0f} | {verdict} |"
        )
    return rows


def interrupted_answer(outcome: DemoOutcome) -> str:
    """Return question and answer of the greedy stream with the longest pause, which is marked."""
    finished = [record for record in outcome.disturbed if record.is_finished and record.texts]
    if not finished:
        return "(no stream ended)"
    # A greedy answer of a small model reads better than a seeded one.
    greedy = [record for record in finished if record.request.kind == "greedy"]
    record = max(greedy or finished, key=lambda candidate: candidate.gap_ns_max)
    instants = record.token_at_ns
    gaps = [later - earlier for earlier, later in pairwise(instants)]
    resumed = gaps.index(max(gaps)) + 1 if gaps else 0
    answer = "".join(record.texts[:resumed]) + PAUSE_MARK + "".join(record.texts[resumed:])
    pause = f"({PAUSE_MARK.strip()} a pause of {milliseconds(record.gap_ns_max):.0f} ms)"
    return f"{record.request.question}\n{answer.strip()}\n{pause}"


def render_plot(outcome: DemoOutcome) -> str:
    """Return tokens per second over time as an SVG, with shapes and a line for every strike."""
    start_ns = _start_ns(outcome)
    instants = [at_ns - start_ns for record in outcome.disturbed for at_ns in record.token_at_ns]
    marks = [(happening.at_ns - start_ns, happening.sentence) for happening in outcome.happenings]
    span_ns = max([*instants, *(at_ns for at_ns, _ in marks), NS_PER_S])
    counts = [0] * (span_ns // BUCKET_NS + 1)
    for instant in instants:
        counts[instant // BUCKET_NS] += 1
    rates = [count * NS_PER_S / BUCKET_NS for count in counts]
    top = max([*rates, 1.0])

    def x_of(instant_ns: int) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * instant_ns / span_ns

    def y_of(rate: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * rate / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="20">tokens per second received by the clients</text>',
    ]
    for number, rate in enumerate(rates):
        left, right = x_of(number * BUCKET_NS), x_of(min((number + 1) * BUCKET_NS, span_ns))
        height = y_of(0) - y_of(rate)
        parts.append(
            f'<rect x="{left:.1f}" y="{y_of(rate):.1f}" width="{max(0.5, right - left - 1):.1f}"'
            f' height="{height:.1f}" fill="#2a7f9e"/>'
        )
    for number, (instant, sentence) in enumerate(marks):
        parts.append(
            f'<line x1="{x_of(instant):.1f}" x2="{x_of(instant):.1f}" y1="{MARGIN - 8}"'
            f' y2="{y_of(0):.1f}" stroke="#c0392b" stroke-width="2" stroke-dasharray="5 3"/>'
            f'<text x="{x_of(instant) + 4:.1f}" y="{MARGIN + 14 * number}" fill="#c0392b">'
            f"{escape(sentence)}</text>"
        )
    for number, seen in enumerate(outcome.shapes):
        x = x_of(max(0, seen.at_ns - start_ns))
        y = HEIGHT - MARGIN + 34 + 13 * (number % 2)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y_of(0):.1f}" y2="{y - 8:.1f}"'
            f' stroke="#555555"/><text x="{x + 3:.1f}" y="{y:.1f}" fill="#555555"'
            f' font-size="10">{escape(seen.shape)}</text>'
        )
    for second in range(0, span_ns // NS_PER_S + 1, max(1, span_ns // NS_PER_S // 10)):
        x = x_of(second * NS_PER_S)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}">{second} s</text>')
    parts.append(f'<text x="4" y="{y_of(top) + 4:.1f}">{top:.0f}</text></svg>')
    return "\n".join(parts) + "\n"


def _start_ns(outcome: DemoOutcome) -> int:
    return min((record.started_at_ns for record in outcome.disturbed), default=0)

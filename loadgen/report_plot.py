"""The report as a picture: what came per second, and how the latencies are distributed. SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from libs.kernel.units import NS_PER_S, milliseconds
from loadgen.records import Outcome, RequestRecord
from loadgen.report import Slo, shares

WIDTH: Final = 960
PANEL_HEIGHT: Final = 240
MARGIN: Final = 48
BARS_MAX: Final = 240
POINTS_MAX: Final = 200
TICKS: Final = 8
COLOURS: Final = {"TTFT": "#2a7f9e", "TBT": "#8e5aa8", "end to end": "#d08a2e"}
BAD_COLOUR: Final = "#c0392b"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One diagram: where it lies, and the value that its right edge stands for."""

    top: int
    x_max: float

    def x_of(self, value: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * value / self.x_max

    def y_of(self, share: float) -> float:
        """Return the height of a share of the panel, 0 below and 1 on top."""
        return self.top + PANEL_HEIGHT - MARGIN - (PANEL_HEIGHT - 2 * MARGIN) * share


def render_plot(records: Sequence[RequestRecord], *, duration_ns: int, slo: Slo) -> str:
    """Return an SVG of tokens per second over time, and of the latencies of what ended ok."""
    whole = [record for record in records if record.ending.outcome is Outcome.OK]
    height = 3 * PANEL_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *_throughput(records, duration_ns=max(duration_ns, NS_PER_S)),
        *_latencies(
            {
                "TTFT": [r.ttft_ns for r in whole if r.ttft_ns is not None],
                "end to end": [r.end_to_end_ns for r in whole],
            },
            limits={"TTFT": slo.ttft_ns, "end to end": slo.end_to_end_ns},
            top=PANEL_HEIGHT,
        ),
        *_latencies(
            {"TBT": [gap for r in whole for gap in r.gaps_ns()]},
            limits={"TBT": slo.tbt_ns},
            top=2 * PANEL_HEIGHT,
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _throughput(records: Sequence[RequestRecord], *, duration_ns: int) -> list[str]:
    """Draw tokens per second as bars, and a mark for every request that did not end ok."""
    bar_ns = max(NS_PER_S, math.ceil(duration_ns / BARS_MAX / NS_PER_S) * NS_PER_S)
    counts = [0] * (duration_ns // bar_ns + 1)
    for record in records:
        for at_ns in record.token_at_ns:
            counts[min(at_ns // bar_ns, len(counts) - 1)] += 1
    highest = max(1, *counts)
    panel = _Panel(top=0, x_max=duration_ns)
    parts = [_text(MARGIN, 20, "tokens per second received; red: a request that did not end ok")]
    for number, count in enumerate(counts):
        left = panel.x_of(number * bar_ns)
        right = min(panel.x_of((number + 1) * bar_ns), WIDTH - MARGIN)
        y = panel.y_of(count / highest)
        parts.append(
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(0.5, right - left - 1):.1f}"'
            f' height="{panel.y_of(0) - y:.1f}" fill="{COLOURS["TTFT"]}"/>'
        )
    for record in records:
        if record.ending.outcome is not Outcome.OK:
            x = panel.x_of(min(record.ended_at_ns, duration_ns))
            parts.append(_line(x, panel.y_of(0), x, panel.y_of(0) + 8, BAD_COLOUR))
    rate = highest * NS_PER_S / bar_ns
    parts.append(_text(4, panel.y_of(1) + 4, f"{rate:.0f}"))
    parts += _axis(panel, lambda value: f"{value / NS_PER_S:.0f} s")
    return parts


def _latencies(
    kinds: dict[str, list[int]], *, limits: dict[str, int | None], top: int
) -> list[str]:
    """Draw the distribution functions of these kinds on one axis of time, with their limits."""
    drawn = [limit for limit in limits.values() if limit is not None]
    longest = max([1, *drawn, *(value for values in kinds.values() for value in values)])
    panel = _Panel(top=top, x_max=longest)
    parts = [_text(MARGIN, top + 20, "share of values at most this long: " + ", ".join(kinds))]
    for number, (name, values) in enumerate(kinds.items()):
        colour = COLOURS[name]
        points = [(0, 0.0), *shares(values, points_max=POINTS_MAX)]
        path = " ".join(f"{panel.x_of(x):.1f},{panel.y_of(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label_y = top + MARGIN + 16 * (number + 1)
        parts.append(_text(WIDTH - 2 * MARGIN - 30, label_y, name, colour))
        limit = limits.get(name)
        if limit is not None:
            x = panel.x_of(limit)
            parts.append(_line(x, panel.y_of(0), x, panel.y_of(1), colour, dashes="5 3"))
    parts += [_text(4, panel.y_of(1) + 4, "100 %"), _text(4, panel.y_of(0) + 4, "0 %")]
    parts += _axis(panel, lambda value: f"{milliseconds(round(value)):.3g} ms")
    return parts


def _axis(panel: _Panel, label_of: Callable[[float], str]) -> list[str]:
    y = panel.y_of(0)
    parts = [_line(MARGIN, y, WIDTH - MARGIN, y, "#888888")]
    for tick in range(TICKS + 1):
        value = panel.x_max * tick / TICKS
        parts.append(_text(panel.x_of(value) - 8, y + 22, label_of(value)))
    return parts


def _text(x: float, y: float, text: str, colour: str = "#222222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashes: str = "none") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
        f' stroke-dasharray="{dashes}"/>'
    )

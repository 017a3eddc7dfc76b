"""Runs as pictures: latency over time above the fleet's shape, distributions, cost. SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

from libs.kernel.units import seconds
from services.simulator.spot.outcome import SpotOutcome
from services.simulator.spot.run import SpotRun

WIDTH: Final = 960
HEIGHT: Final = 320
MARGIN: Final = 56
COLOURS: Final = ("#2a7f9e", "#8e5aa8", "#d08a2e", "#c0392b", "#3a8a4d", "#555555")
POINTS_MAX: Final = 2_000
"""Drawn of one line; of more every so manieth is."""
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One diagram from (0, 0) to its greatest values."""

    title: str
    top: int
    x_max: float
    y_max: float

    def frame(self, *, x_name: str) -> list[str]:
        """Draw axes, greatest values and title."""
        left, bottom = MARGIN, self.top + HEIGHT - MARGIN
        return [
            _text(left, self.top + 24, self.title, size=14),
            f'<path d="M{left} {self.top + MARGIN} V{bottom} H{WIDTH - MARGIN}" fill="none"'
            ' stroke="#888888"/>',
            _text(4, self.top + MARGIN + 4, f"{self.y_max:.4g}"),
            _text(4, bottom, "0"),
            _text(WIDTH - MARGIN, bottom + 18, f"{self.x_max:.4g} {x_name}", anchor="end"),
        ]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point lies on the page."""
        across = (WIDTH - 2 * MARGIN) * x / (self.x_max or 1)
        up = (HEIGHT - 2 * MARGIN) * y / (self.y_max or 1)
        return round(MARGIN + across, 1), round(self.top + HEIGHT - MARGIN - up, 1)

    def line(self, points: Points, colour: str) -> str:
        """Draw a line through the points."""
        path = " L".join(f"{x} {y}" for x, y in (self.at(*p) for p in _thinned(points)))
        return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def timeline(run: SpotRun, *, name: str) -> str:
    """Draw the latency of each request at its arrival, above nodes and replicas over time."""
    done = [
        (seconds(r.arrived_at_ns - run.begins_at_ns), seconds(r.latency_ns))
        for r in run.requests
        if r.latency_ns is not None
    ]
    x_max = max([seconds(run.options.trace.end_at_ns), *(x for x, _ in done)])
    above = _Panel(
        title=f"{name}: latency (s) of requests by arrival",
        top=0,
        x_max=x_max,
        y_max=max((y for _, y in done), default=1.0),
    )
    nodes, replicas = _nodes_over_time(run), _replicas_over_time(run)
    below = _Panel(
        title="nodes, and replicas with their shapes",
        top=HEIGHT,
        x_max=x_max,
        y_max=max((y for _, y in nodes), default=1.0),
    )
    parts = [*above.frame(x_name="s"), above.line(done, COLOURS[0]), *below.frame(x_name="s")]
    parts.append(below.line(_stairs(nodes, until=x_max), COLOURS[2]))
    for (start, label), (end, _) in pairwise([*replicas, (x_max, "")]):
        x, y = below.at(start, 0)
        parts.append(f'<path d="M{x} {y} v-{HEIGHT - 2 * MARGIN}" stroke="#dddddd"/>')
        if (end - start) / (x_max or 1) > 0.03:
            parts.append(_text(round(x) + 3, round(y) - 6, label, size=10))
    return _page(parts, height=2 * HEIGHT)


def distributions(runs: Sequence[tuple[str, SpotRun]]) -> str:
    """Draw the share of requests that were answered within a time, a line for each run."""
    lines = [
        (name, sorted(seconds(r.latency_ns) for r in run.requests if r.latency_ns is not None))
        for name, run in runs
    ]
    panel = _Panel(
        title="share of requests answered within a latency",
        top=0,
        x_max=max((line[-1] for _, line in lines if line), default=1.0),
        y_max=1.0,
    )
    parts = panel.frame(x_name="s")
    for index, (name, line) in enumerate(lines):
        points = [(value, (rank + 1) / len(line)) for rank, value in enumerate(line)]
        colour = COLOURS[index % len(COLOURS)]
        parts += [panel.line(points, colour), _legend(name, index, colour)]
    return _page(parts, height=HEIGHT)


def costs(outcomes: Sequence[SpotOutcome]) -> str:
    """Draw cost against P99 latency, a point for each outcome."""
    panel = _Panel(
        title="P99 latency (s) by cost",
        top=0,
        x_max=1.1 * max((o.usd_per_1k_tokens for o in outcomes), default=1.0),
        y_max=1.1 * max((o.p99_s for o in outcomes), default=1.0),
    )
    parts = panel.frame(x_name="USD per 1,000 tokens")
    for index, outcome in enumerate(outcomes):
        x, y = panel.at(outcome.usd_per_1k_tokens, outcome.p99_s)
        colour = COLOURS[index % len(COLOURS)]
        parts += [
            f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>',
            _legend(outcome.policy, index, colour),
        ]
    return _page(parts, height=HEIGHT)


def _nodes_over_time(run: SpotRun) -> list[tuple[float, float]]:
    edges = [(span.usable_at_ns, 1) for span in run.options.trace.spans]
    edges += [(s.gone_at_ns, -1) for s in run.options.trace.spans if s.gone_at_ns is not None]
    nodes = 0
    counts: dict[int, int] = {}
    for at_ns, change in sorted(edges):
        nodes += change
        counts[at_ns] = nodes
    return [(seconds(at_ns), float(count)) for at_ns, count in counts.items()]


def _replicas_over_time(run: SpotRun) -> list[tuple[float, str]]:
    """Return (second, such as `2 x (3,4)`) for each placement, D x (P,M)."""
    changes = []
    for happening in run.fleet.log:
        shapes = dict(happening.details).get("shapes")
        if happening.what != "placement_committed" or not isinstance(shapes, tuple):
            continue
        counted = [f"{shapes.count(shape)} x ({shape.replace('x', ',')})" for shape in set(shapes)]
        at_s = max(0.0, seconds(happening.at_ns - run.begins_at_ns))
        changes.append((at_s, " + ".join(sorted(counted)) or "none"))
    return changes


def _stairs(points: Points, *, until: float) -> list[tuple[float, float]]:
    corners = []
    for (x, y), (next_x, _) in pairwise([*points, (until, 0.0)]):
        corners += [(x, y), (next_x, y)]
    return corners


def _thinned(points: Points) -> Points:
    stride = max(1, len(points) // POINTS_MAX)
    return points[::stride] or [(0.0, 0.0)]


def _legend(name: str, index: int, colour: str) -> str:
    return _text(WIDTH - MARGIN, MARGIN + 18 * index, name, anchor="end", colour=colour)


def _text(
    x: int, y: int, text: str, *, size: int = 12, anchor: str = "start", colour: str = "#222222"
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _page(parts: Sequence[str], *, height: int) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="sans-serif">'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"

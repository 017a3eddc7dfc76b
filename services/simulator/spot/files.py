"""Writes a run down: what happened, how it looks, what it came to."""

import json
from collections.abc import Sequence
from pathlib import Path

from services.simulator.spot.chrome_trace import chrome_trace
from services.simulator.spot.outcome import SpotOutcome
from services.simulator.spot.plots import costs, distributions, timeline
from services.simulator.spot.run import SpotRun


def write_run(run: SpotRun, *, name: str, folder: Path) -> None:
    """Write the event log, the Chrome trace and the timeline of one run.

    Raises: OSError that names the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}-events.jsonl").open("w", encoding="utf-8") as file:
        for happening in run.fleet.log:
            file.write(happening.json_line() + "\n")
    trace = json.dumps(chrome_trace(run))
    (folder / f"{name}-chrome-trace.json").write_text(trace, encoding="utf-8")
    (folder / f"{name}-timeline.svg").write_text(timeline(run, name=name), encoding="utf-8")


def write_comparison(
    runs: Sequence[tuple[str, SpotRun]], outcomes: Sequence[SpotOutcome], *, folder: Path
) -> None:
    """Write what the runs have in common: figures, distributions, cost against latency."""
    figures = json.dumps({"runs": [outcome.as_json() for outcome in outcomes]}, indent=2)
    (folder / "outcomes.json").write_text(figures + "\n", encoding="utf-8")
    (folder / "latencies.svg").write_text(distributions(runs), encoding="utf-8")
    (folder / "cost.svg").write_text(costs(outcomes), encoding="utf-8")

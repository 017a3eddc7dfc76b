"""A run as a trace that chrome://tracing and Perfetto show: replicas, hand-overs, nodes, requests.

One row for each replica that served, each hand-over with its states, each node, and one for each
request from its arrival to its end.
"""

from collections.abc import Iterator

from libs.kernel.units import NS_PER_US
from services.simulator.spot.event_log import Happening
from services.simulator.spot.run import SpotRun

Event = dict[str, object]
PROCESSES = {"node": 1, "replica": 2, "handover": 3, "request": 4}
ENDS = frozenset({"ends", "stands still", "breaks", "is dropped", "done", "abandoned"})
"""What ends the state that the entity was in."""


def chrome_trace(run: SpotRun) -> dict[str, list[Event]]:
    """Return the trace as Chrome's JSON has it."""
    names = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"{kind}s"}}
        for kind, pid in PROCESSES.items()
    ]
    return {"traceEvents": [*names, *_states(run), *_requests(run)]}


def _states(run: SpotRun) -> Iterator[Event]:
    """Yield each state of nodes, replicas and hand-overs from its beginning to the next."""
    under_way: dict[str, Happening] = {}
    for happening in run.fleet.log:
        kind = happening.entity.split("-", 1)[0]
        if kind not in PROCESSES or happening.what in ("loads", "kv copied", "is released"):
            continue
        before = under_way.pop(happening.entity, None)
        if before is not None:
            yield _span(kind, before, until_ns=happening.at_ns)
        if happening.what not in ENDS:
            under_way[happening.entity] = happening
    for entity, happening in under_way.items():
        yield _span(entity.split("-", 1)[0], happening, until_ns=run.fleet.world.now_ns)


def _span(kind: str, begun: Happening, *, until_ns: int) -> Event:
    return {
        "ph": "X",
        "name": begun.what,
        "cat": kind,
        "pid": PROCESSES[kind],
        "tid": begun.entity,
        "ts": begun.at_ns / NS_PER_US,
        "dur": (until_ns - begun.at_ns) / NS_PER_US,
        "args": dict(begun.details),
    }


def _requests(run: SpotRun) -> Iterator[Event]:
    for request in run.requests:
        if request.latency_ns is None:
            continue
        yield {
            "ph": "X",
            "name": request.request_id,
            "cat": "request",
            "pid": PROCESSES["request"],
            "tid": request.request_id,
            "ts": request.arrived_at_ns / NS_PER_US,
            "dur": request.latency_ns / NS_PER_US,
            "args": {"tokens_recomputed": request.tokens_recomputed},
        }

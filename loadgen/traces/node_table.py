"""Node traces of Bamboo and Parcae: CSV, often with CRLF.

`t_ms,add|remove,node` has one line per event; `t_ms,count` says how many nodes there are from
then on, with or without a header. Sources: uclasystem/bamboo, Hsword/SpotServe (`trace_full`).
"""

from pathlib import Path
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from loadgen.traces.availability import AvailabilityTrace, NodeChange, from_counts
from loadgen.traces.change_log import ChangeLog
from loadgen.traces.lines import InOrder, read_lines

NODES_MAX: Final = 100_000


def read_node_events(path: Path) -> AvailabilityTrace:
    """Return a trace of `t_ms,add|remove,node`. Raises: TraceError that names the line."""
    log = ChangeLog(path)
    in_order = InOrder()
    for line in read_lines(path):
        fields = line.fields()
        if len(fields) != 3 or not fields[2]:
            raise line.error("not a time, add or remove, and a node")
        at_ns = in_order.check(line.milliseconds_ns(fields[0], name="time"), line)
        match fields[1]:
            case "add":
                log.add(NodeChange(at_ns=at_ns, added=(fields[2],)), line)
            case "remove":
                log.add(NodeChange(at_ns=at_ns, removed=(fields[2],)), line)
            case _:
                raise line.error("the second field is neither add nor remove")
    return log.trace()


def read_node_counts(path: Path, *, rng: Rng) -> AvailabilityTrace:
    """Return a trace of `t_ms,count`; which node goes is drawn from `rng`.

    Raises: TraceError that names the line.
    """
    counts: list[tuple[int, int]] = []
    in_order = InOrder()
    for line in read_lines(path):
        fields = line.fields()
        if len(fields) != 2:
            raise line.error("not a time and a count")
        if line.number == 1 and not fields[0].replace(".", "").isdigit():
            continue
        at_ns = in_order.check(line.milliseconds_ns(fields[0], name="time"), line)
        count = line.count(fields[1], name="count")
        if count > NODES_MAX:
            raise line.error(f"more than {NODES_MAX} nodes")
        counts.append((at_ns, count))
    if not counts:
        raise ConfigError(f"{path}: the trace holds no count")
    end_at_ns = counts[-1][0]
    return from_counts(
        counts, name=path.stem, source=path.name, end_at_ns=end_at_ns, rng=rng.child("nodes gone")
    )

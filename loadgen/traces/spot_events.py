"""SpotServe's event traces: JSON lines `[t_ms, kind, {"nodes": [...], "required_tpt"?: rate}]`.

Kinds: "add", "remove", "other" (only the demand changes) and "DONE", which ends the trace.
Source: Hsword/SpotServe.
"""

from pathlib import Path

from loadgen.traces.availability import AvailabilityTrace, NodeChange
from loadgen.traces.change_log import ChangeLog
from loadgen.traces.json_lines import parse_json
from loadgen.traces.lines import InOrder, TraceLine, read_lines


def read_spot_events(path: Path) -> AvailabilityTrace:
    """Return the whole trace. Raises: TraceError that names the line."""
    log = ChangeLog(path)
    in_order = InOrder()
    for line in read_lines(path):
        if log.is_ended:
            raise line.error("there is a line after DONE")
        kind, change = _event(line)
        in_order.check(change.at_ns, line)
        if kind == "DONE":
            log.end(change.at_ns)
        else:
            log.add(change, line)
    return log.trace()


def _event(line: TraceLine) -> tuple[str, NodeChange]:
    row = parse_json(line)
    if not isinstance(row, list) or len(row) != 3:
        raise line.error("not a list of time, kind and details")
    at_ns = line.milliseconds_ns(row[0], name="time")
    kind, details = row[1], row[2]
    if not isinstance(details, dict):
        raise line.error("the details are not a JSON object")
    nodes = _nodes(details.get("nodes", []), line)
    rate = details.get("required_tpt")
    demand = None if rate is None else line.number_of(rate, name="required_tpt")
    match kind:
        case "add":
            change = NodeChange(at_ns=at_ns, added=nodes, required_requests_per_s=demand)
        case "remove":
            change = NodeChange(at_ns=at_ns, removed=nodes, required_requests_per_s=demand)
        case "other" | "DONE":
            if nodes:
                raise line.error(f"{kind} names nodes")
            change = NodeChange(at_ns=at_ns, required_requests_per_s=demand)
        case _:
            raise line.error("the kind is none of add, remove, other, DONE")
    return kind, change


def _nodes(value: object, line: TraceLine) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise line.error("nodes is not a list")
    nodes = tuple(node for node in value if isinstance(node, str) and node)
    if len(nodes) != len(value):
        raise line.error("nodes holds something that is not a name")
    return nodes

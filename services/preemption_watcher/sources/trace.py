"""A file of notices to come, for drills and benchmarks: what the cloud would say, and when.

One JSON object per line, in order of time:

    {"at_s": 60, "node_id": "node-1", "action": "preempt", "grace_s": 30}
    {"at_s": 75, "node_id": "node-1", "action": "withdraw"}

`at_s` counts from the start of the trace. A node's second preempt replaces its first.
"""

import json
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from libs.contracts.preemption import NoticeKind
from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.clock import Clock
from services.preemption_watcher.options import SourceOptions
from services.preemption_watcher.readings import Observation, Reading, notice_id_of

NAME: Final = "trace"
POLL_INTERVAL_NS: Final = 50 * NS_PER_MS
"""A notice of the trace may come late by this much."""
FIELDS: Final = frozenset({"at_s", "node_id", "action", "grace_s"})
SECONDS_MAX: Final = 10**9
"""Thirty years; keeps every instant within what a message carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLine:
    """What happens to one node at one instant."""

    at_ns: int
    node_id: str
    action: Literal["preempt", "withdraw"]
    grace_ns: int | None


class TraceSource:
    """Replays the lines about one node."""

    def __init__(
        self, lines: tuple[TraceLine, ...], *, node_id: str, start_at_unix_ns: int, clock: Clock
    ) -> None:
        self._lines = [line for line in lines if line.node_id == node_id]
        self._start_at_unix_ns = start_at_unix_ns
        self._clock = clock
        self.options = SourceOptions(name=NAME, poll_interval_ns=POLL_INTERVAL_NS)

    async def poll(self) -> Observation:
        """See NoticeSource.poll."""
        since_start_ns = self._clock.now_unix_ns() - self._start_at_unix_ns
        due = bisect_right(self._lines, since_start_ns, key=lambda line: line.at_ns)
        if due == 0 or self._lines[due - 1].action == "withdraw":
            return Observation()
        line = self._lines[due - 1]
        given_at_unix_ns = self._start_at_unix_ns + line.at_ns
        reading = Reading(
            notice_id=notice_id_of(NAME, line.node_id, str(given_at_unix_ns)),
            kind=NoticeKind.PREEMPTION,
            deadline_at_unix_ns=None if line.grace_ns is None else given_at_unix_ns + line.grace_ns,
            detail="replayed from a trace",
        )
        return Observation(readings=(reading,))

    async def confirm(self, notice_id: str) -> None:
        """A trace does not want to know."""

    async def close(self) -> None:
        """See NoticeSource.close."""


def read_trace(file: Path) -> tuple[TraceLine, ...]:
    """Return the lines of a trace. Raises: ConfigError naming file, line and what is wrong."""
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    lines: list[TraceLine] = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        where = f"{file}:{number}"
        line = _line(text, where=where)
        if lines and line.at_ns < lines[-1].at_ns:
            raise ConfigError(f"{where}: at_s: lies before the line above; sort by time")
        lines.append(line)
    return tuple(lines)


def _line(text: str, *, where: str) -> TraceLine:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: is not JSON") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: is not a JSON object")
    unknown = sorted(value.keys() - FIELDS)
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]}: no such field")
    action = value.get("action")
    if action not in ("preempt", "withdraw"):
        raise ConfigError(f"{where}: action: must be preempt or withdraw")
    node_id = value.get("node_id")
    if not isinstance(node_id, str) or not node_id:
        raise ConfigError(f"{where}: node_id: must be a node's id")
    return TraceLine(
        at_ns=_ns(value.get("at_s"), where=f"{where}: at_s"),
        node_id=node_id,
        action=action,
        grace_ns=None
        if value.get("grace_s") is None
        else _ns(value["grace_s"], where=f"{where}: grace_s"),
    )


def _ns(value: Any, *, where: str) -> int:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= SECONDS_MAX:  # which NaN is not, either
        raise ConfigError(f"{where}: must be seconds, from 0 to {SECONDS_MAX}")
    return round(float(value) * NS_PER_S)

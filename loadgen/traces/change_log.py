"""Collects the changes that a reader finds and refuses an impossible one where it stands."""

from pathlib import Path
from typing import Final

from libs.kernel.errors import ConfigError
from loadgen.traces.availability import AvailabilityTrace, NodeChange, Presence, merged
from loadgen.traces.lines import TraceLine

CHANGES_MAX: Final = 1_000_000


class ChangeLog:
    """The changes of one file so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changes: list[NodeChange] = []
        self._present = Presence()
        self._end_at_ns: int | None = None

    @property
    def is_ended(self) -> bool:
        """Whether the file has said where the trace ends."""
        return self._end_at_ns is not None

    def add(self, change: NodeChange, line: TraceLine) -> None:
        """Take the change of a line. Raises: TraceError where it is impossible."""
        if len(self._changes) >= CHANGES_MAX:
            raise line.error(f"more than {CHANGES_MAX} changes")
        explanation = self._present.apply(change)
        if explanation is not None:
            raise line.error(explanation)
        self._changes.append(change)

    def end(self, at_ns: int) -> None:
        """Note where the trace ends; without it, it ends with its last change."""
        self._end_at_ns = at_ns

    def trace(self) -> AvailabilityTrace:
        """Return everything. Raises: ConfigError if there was nothing."""
        if not self._changes:
            raise ConfigError(f"{self._path}: the trace holds no change")
        latest_ns = self._changes[-1].at_ns
        return AvailabilityTrace(
            name=self._path.stem,
            source=self._path.name,
            changes=merged(self._changes),
            end_at_ns=latest_ns if self._end_at_ns is None else self._end_at_ns,
        )

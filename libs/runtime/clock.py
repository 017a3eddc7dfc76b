"""The clock that shells read; cores receive what it says as an argument."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings, both integer nanoseconds."""

    def now_ns(self) -> int:
        """Return the monotonic time of this machine: for durations, deadlines and timers."""

    def now_unix_ns(self) -> int:
        """Return the time since 1970: only for what crosses nodes or is shown to people."""


class SystemClock:
    """The machine's own clocks."""

    def now_ns(self) -> int:
        """Return the monotonic time; the same base in every process of the machine."""
        return time.monotonic_ns()

    def now_unix_ns(self) -> int:
        """Return the wall-clock time; it may step."""
        return time.time_ns()

"""The virtual clock and the order of everything that happens.

Time moves only between actions; actions at the same instant run in the order in which they were
scheduled. Nothing here depends on hashing, so one seed is one history: `digest` proves it.
"""

import hashlib
import heapq
from collections.abc import Callable

from libs.kernel.errors import InvariantViolation
from libs.kernel.rng import Rng

Action = Callable[[], None]


class World:
    """A heap of actions under a virtual clock, bounded in how many it runs."""

    def __init__(self, *, seed: int, actions_max: int) -> None:
        self.rng = Rng(seed)
        self.now_ns = 0
        self.actions_run = 0
        self._actions_max = actions_max
        self._heap: list[tuple[int, int, Action]] = []
        self._scheduled = 0
        self._history = hashlib.blake2b(digest_size=16)

    def after(self, delay_ns: int, action: Action) -> None:
        """Run the action once the delay has passed."""
        if delay_ns < 0:
            raise InvariantViolation("an action cannot be scheduled in the past")
        self._scheduled += 1
        heapq.heappush(self._heap, (self.now_ns + delay_ns, self._scheduled, action))

    def note(self, what: str) -> None:
        """Add a happening to the history that the digest covers."""
        self._history.update(f"{self.now_ns} {what}\n".encode())

    @property
    def digest(self) -> str:
        """Hex digest of all noted happenings with their times; equal for equal histories."""
        return self._history.hexdigest()

    def run(self, *, until_ns: int, is_done: Callable[[], bool]) -> bool:
        """Run until `is_done` holds, nothing is left, or the time is reached; return `is_done`.

        Raises: InvariantViolation past `actions_max`, which a livelock would reach.
        """
        heap, actions_max = self._heap, self._actions_max
        while heap and heap[0][0] <= until_ns and not is_done():
            self.now_ns, _, action = heapq.heappop(heap)
            self.actions_run += 1
            if self.actions_run > actions_max:
                raise InvariantViolation("more actions than a run may take")
            action()
        return is_done()

"""A process as the operating system sees it: it runs, is paused, wakes, or is dead for good.

Everything that reaches a process (messages, answers, timers) goes through `deliver`. A paused one
gets it all when it wakes, in order, as a stopped process does from its sockets; a dead one never.
"""

from collections import deque
from enum import StrEnum

from libs.kernel.core import require
from libs.sim.world import Action, World

BACKLOG_MAX = 1_000_000
"""Deliveries a paused process may have waiting; past it the run is broken, not the process."""


class Life(StrEnum):
    """What a process is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


class SimProcess:
    """Base of everything that lives in a simulated world."""

    def __init__(self, world: World, *, name: str) -> None:
        self.world = world
        self.name = name
        self.life = Life.RUNNING
        self._backlog: deque[Action] = deque()
        self._timers: dict[str, int] = {}

    def deliver(self, action: Action) -> None:
        """Run the action in this process: now, on waking, or never."""
        match self.life:
            case Life.RUNNING:
                action()
            case Life.PAUSED:
                require(len(self._backlog) < BACKLOG_MAX, f"{self.name}: backlog without bound")
                self._backlog.append(action)
            case Life.DEAD:
                pass

    def set_timer(self, key: str, *, after_ns: int, action: Action) -> None:
        """Run the action after the delay, unless the key is set again before."""
        number = self._timers.get(key, 0) + 1
        self._timers[key] = number

        def fire() -> None:
            if self._timers.get(key) == number:
                action()

        self.world.after(after_ns, lambda: self.deliver(fire))

    def kill(self) -> None:
        """End at once; nothing is said to anybody."""
        self.world.note(f"kill {self.name}")
        self.life = Life.DEAD
        self._backlog.clear()

    def pause(self) -> None:
        """Stop in the middle of whatever it was doing."""
        if self.life is Life.RUNNING:
            self.world.note(f"pause {self.name}")
            self.life = Life.PAUSED

    def wake(self) -> None:
        """Go on; what came meanwhile is seen now, in order."""
        if self.life is not Life.PAUSED:
            return
        self.world.note(f"wake {self.name}")
        self.life = Life.RUNNING
        while self._backlog and self.life is Life.RUNNING:
            self._backlog.popleft()()

"""What engines under continuous batching have in common: they compute in stretches of equal steps.

    boundary --next stretch--> steps of equal length, one action --account--> boundary
                                   ^-- add, stop: cut at the next boundary

What comes waits for the boundary after it; who is told to stop is still there.
"""

from abc import ABC, abstractmethod

from libs.kernel.core import require
from libs.sim.world import Action, World
from services.simulator.spot.engine import EngineOwner, EngineReport
from services.simulator.spot.work import Work


class StretchingEngine(ABC):
    """See ReplicaEngine."""

    def __init__(self, world: World, owner: EngineOwner) -> None:
        self._world = world
        self._owner = owner
        self._arriving: list[Work] = []
        """They still have to take the steps before they came."""
        self._is_started = False
        self._is_halted = False
        self._on_still: Action | None = None
        self._steps = 0
        """Of the stretch under way; 0 between two."""
        self._step_ns = 1
        self._began_at_ns = 0
        self._stretch = 0

    # ------------------------------------------------------------------ from outside

    def start(self) -> None:
        """See ReplicaEngine."""
        self._is_started = True
        if not self._steps:
            self._begin()

    def stop(self, on_still: Action) -> None:
        """See ReplicaEngine."""
        self._is_started = False
        if not self._steps:
            on_still()
            return
        self._on_still = on_still
        self._cut()

    def halt(self) -> None:
        """See ReplicaEngine."""
        for work in self.held():
            work.requests[0].tokens_done = work.tokens_done
        self._is_started = False
        self._is_halted = True
        self._stretch += 1
        self._steps = 0

    def add(self, work: Work) -> None:
        """See ReplicaEngine."""
        self._arriving.append(work)
        if self._steps:
            self._cut()
            return
        self._take_in()
        if self._is_started:
            self._begin()

    def held(self) -> list[Work]:
        """See ReplicaEngine."""
        return [*self._held_known(), *self._arriving]

    def take(self) -> list[Work]:
        """See ReplicaEngine."""
        require(not self._steps, "work is taken from an engine that computes")
        works = self.held()
        self._forget()
        self._arriving.clear()
        return works

    @property
    def kv_tokens(self) -> int:
        """See ReplicaEngine."""
        return 0 if self._is_halted else sum(work.kv_tokens for work in self.held())

    @property
    @abstractmethod
    def requests_held(self) -> int:
        """See ReplicaEngine."""

    @abstractmethod
    def report(self) -> EngineReport:
        """See ReplicaEngine."""

    # ------------------------------------------------------------------ what an engine says

    @abstractmethod
    def _held_known(self) -> list[Work]:
        """All but those that arrive, each with what it has now."""

    @abstractmethod
    def _forget(self) -> None:
        """Know nobody any more."""

    @abstractmethod
    def _next_stretch(self) -> tuple[int, int] | None:
        """Compose the next steps: how many are alike, and what each takes; None: nobody is here."""

    @abstractmethod
    def _account(self, steps: int) -> None:
        """Let so many steps of the stretch have been taken: it ends now."""

    @abstractmethod
    def _take_in(self) -> None:
        """Let those wait for admission who have come since the last boundary."""

    # ------------------------------------------------------------------ stretches

    def _steps_passed(self) -> int:
        """Of the stretch under way, those that are over by now."""
        if self._steps < 2:
            return 0
        passed = (self._world.now_ns - self._began_at_ns) // self._step_ns
        return min(passed, self._steps - 1)

    def _begin(self) -> None:
        stretch = self._next_stretch()
        if stretch is None:
            self._owner.engine_idle()
            return
        self._steps, self._step_ns = stretch
        self._began_at_ns = self._world.now_ns
        self._end_after(self._steps)

    def _end_after(self, steps: int) -> None:
        self._stretch += 1
        stretch = self._stretch

        def end() -> None:
            if self._stretch == stretch:
                self._end()

        ends_at_ns = self._began_at_ns + steps * self._step_ns
        self._world.after(ends_at_ns - self._world.now_ns, end)

    def _end(self) -> None:
        steps, self._steps = self._steps, 0
        self._account(steps)
        self._take_in()
        if self._is_started:
            self._begin()
        elif self._on_still is not None:
            on_still, self._on_still = self._on_still, None
            on_still()

    def _cut(self) -> None:
        """End the stretch at the next boundary between two steps."""
        steps = max(1, -((self._began_at_ns - self._world.now_ns) // self._step_ns))
        if steps < self._steps:
            self._steps = steps
            self._end_after(steps)

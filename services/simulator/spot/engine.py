"""What the fleet needs of an engine, whichever way it batches."""

from typing import NamedTuple, Protocol

from libs.sim.world import Action
from services.simulator.spot.work import SimRequest, Work


class EngineReport(NamedTuple):
    """What a lead's report says of its engine; made at every choice of a replica."""

    requests_running: int = 0
    requests_waiting: int = 0
    tokens_waiting: int = 0
    """Prompt tokens not computed yet."""
    step_ns: int = 0


class EngineOwner(Protocol):
    """Who hears of what an engine does."""

    def request_finished(self, request: SimRequest) -> None:
        """The request's last token is there."""

    def engine_idle(self) -> None:
        """The engine could begin something."""


class ReplicaEngine(Protocol):
    """Computes the sessions of one replica; begins stopped."""

    def start(self) -> None:
        """Compute from now on, or again."""

    def stop(self, on_still: Action) -> None:
        """Compute no more from the next step boundary on, which is when `on_still` runs."""

    def halt(self) -> None:
        """End at once: the replica is broken. What was not kept is lost."""

    def add(self, work: Work) -> None:
        """Take work in, be the engine stopped or not; what has no KV is computed anew."""

    def held(self) -> list[Work]:
        """What is there now, with the KV that it has; exact when the engine stands still."""

    def take(self) -> list[Work]:
        """Give all work away."""

    @property
    def requests_held(self) -> int:
        """Running and waiting."""

    def report(self) -> EngineReport:
        """How full the engine is."""

    @property
    def kv_tokens(self) -> int:
        """Whose KV lies here now; 0 once it was halted."""

"""One replica of the simulated fleet: who computes what, and how far its KV has been copied."""

from dataclasses import dataclass, field

from libs.contracts.handover import ReplicaRoster
from libs.policy.shapes import ReplicaShape
from libs.sim.world import Action
from services.simulator.spot.engine import ReplicaEngine
from services.simulator.spot.transfers import Placed
from services.simulator.spot.work import Work


@dataclass(slots=True, kw_only=True)
class SimReplica:
    """Shared by the workers of its roster; its lead speaks for it."""

    roster: ReplicaRoster
    placed: tuple[Placed, ...]
    engine: ReplicaEngine
    is_serving: bool = False
    """Takes sessions."""
    is_broken: bool = False
    members_active: set[str] = field(default_factory=set)
    """Workers that have activated it; for membership only."""
    tokens_copied: dict[str, int] = field(default_factory=dict)
    """KV that lies at the heirs, by the name of the work."""

    on_broken: list[Action] = field(default_factory=list)
    """What waits for the replica and has to hear that it is no more."""
    lead_id: str = field(init=False)
    """The worker that speaks for it, even if it is dead."""

    def __post_init__(self) -> None:
        self.lead_id = self.placed[(self.roster.stages - 1) * self.roster.shards].worker_id

    def break_up(self) -> list[Work]:
        """A member is lost: nothing is computed any more. Return what was under way."""
        self.is_broken = True
        self.is_serving = False
        self.engine.halt()
        waiting, self.on_broken = self.on_broken, []
        for tell in waiting:
            tell()
        return self.engine.take()

    @property
    def replica_id(self) -> str:
        """As in the placement."""
        return self.roster.replica_id

    @property
    def shape(self) -> ReplicaShape:
        """P x M."""
        return ReplicaShape(stages=self.roster.stages, shards=self.roster.shards)

    def tokens_uncopied(self, work: Work) -> int:
        """KV that the heirs lack of this work."""
        return max(0, work.kv_tokens - self.tokens_copied.get(work.name, 0))

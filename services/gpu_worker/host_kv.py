"""The host memory of one replica as its lead sees it: what lies there, comes and goes."""

from dataclasses import dataclass, field

from libs.engine.host_tier import HostTier
from libs.engine.scheduler import Scheduler
from libs.policy.copy_pace import CopyPace
from libs.policy.kv_return import HostLink
from libs.policy.latency_model import LatencyModel
from services.gpu_worker.checkpoint_options import CheckpointOptions
from services.gpu_worker.positions import WorkerPosition
from services.gpu_worker.uncopied_blocks import UncopiedBlocks

ROWS_MIN = 16
"""A step with fewer rows reads all weights for them, and says nothing of what a row costs."""
STEP_WEIGHT = 0.2
"""Share of the newest step in the time of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A StoreBlocks under way."""

    op_id: str
    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A LoadBlocks under way for one sequence, which is held back until its outcome."""

    op_id: str
    sequence_id: str
    hashes_by_slot: dict[int, int]


@dataclass(slots=True, kw_only=True, eq=False)
class HostKv:
    """One position's checkpoints, for as long as it serves."""

    position: WorkerPosition
    scheduler: Scheduler
    tier: HostTier
    uncopied: UncopiedBlocks
    pace: CopyPace
    link: HostLink
    row_ns: float | None = None
    """Measured time of one row of a step that computes many; None before the first."""
    store: Store | None = None
    loads: dict[str, Load] = field(default_factory=dict)
    """By op_id."""
    arrived: dict[str, str] = field(default_factory=dict)
    """Ticket by sequence: its blocks are here and kept until it runs."""

    @property
    def model(self) -> LatencyModel | None:
        """What computing costs, as far as it was measured."""
        if self.row_ns is None:
            return None
        return LatencyModel(
            step_ns=0.0,
            row_ns=self.row_ns,
            pair_prefilled_ns=0.0,
            token_attended_ns=0.0,
            sequence_ns=0.0,
        )

    def step_ended(self, *, rows: int, duration_ns: int) -> None:
        """Take in how long a step took."""
        self.pace.step_ended(duration_ns)
        if rows >= ROWS_MIN:
            measured = duration_ns / rows
            before = measured if self.row_ns is None else self.row_ns
            self.row_ns = before + STEP_WEIGHT * (measured - before)


def host_kv_of(position: WorkerPosition, options: CheckpointOptions) -> HostKv:
    """Begin the checkpoints of a lead's position; its scheduler learns what is stored."""
    scheduler = position.scheduler
    assert scheduler is not None
    tier = HostTier(slots_total=position.host_room.blocks)
    scheduler.set_stored(tier)
    return HostKv(
        position=position,
        scheduler=scheduler,
        tier=tier,
        uncopied=UncopiedBlocks(scheduler, tier),
        pace=CopyPace(share_max=options.copy_share_max),
        link=options.link_assumed,
    )

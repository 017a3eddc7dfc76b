"""The host memory of one replica as its lead sees it: what lies there, comes and goes."""

from dataclasses import dataclass, field

from libs.engine.host_tier import HostTier
from libs.engine.scheduler import Scheduler
from libs.policy.copy_pace import CopyPace
from libs.policy.kv_return import HostLink, ReturnTest
from services.gpu_worker.checkpoint_options import CheckpointOptions
from services.gpu_worker.positions import WorkerPosition
from services.gpu_worker.uncopied_blocks import UncopiedBlocks


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
    copies: int = 0
    """Copies so far: their names."""
    store: Store | None = None
    loads: dict[str, Load] = field(default_factory=dict)
    """By op_id."""
    in_turn: set[str] = field(default_factory=set)
    """Sequences held back until a load ends and theirs can begin; for membership only."""
    arrived: dict[str, str] = field(default_factory=dict)
    """Ticket by sequence: its blocks are here and kept until it runs."""

    @property
    def is_copying(self) -> bool:
        """Whether a copy is under way."""
        return self.store is not None or bool(self.loads)

    def pays(self, test: ReturnTest, *, blocks: int) -> bool:
        """Whether blocks come back cheaper by copies than by computing; tokens before them, which
        make computing dearer, are left out."""
        return test(
            self.link,
            self.scheduler.timing.model,
            bytes_=blocks * self.position.host_room.block_bytes,
            tokens=blocks * self.scheduler.options.block_tokens,
            tokens_before=0,
        )

    def copy_ended(self, *, blocks: int, duration_ns: int) -> None:
        """Take in how long a copy took."""
        self.pace.copy_ended(duration_ns)
        bytes_ = blocks * self.position.host_room.block_bytes
        self.link = self.link.after(bytes_=bytes_, duration_ns=duration_ns)

    def next_op_id(self, kind: str) -> str:
        """Name a copy."""
        self.copies += 1
        return f"{self.position.replica_id}.{kind}-{self.copies}"


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

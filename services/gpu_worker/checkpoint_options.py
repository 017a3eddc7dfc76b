"""How a worker keeps checkpoints of offline KV in host memory, and what they came to."""

from dataclasses import dataclass
from typing import Literal

from libs.kernel.core import require
from libs.kernel.units import MIB, NS_PER_US
from libs.policy.kv_return import HostLink

WAITING_LOOKED_AT = 16
"""So many waiting sequences, the next ones in the order of service, have their KV brought or kept
for them."""
CheckpointPolicy = Literal["off", "eager", "lazy"]


LINK_ASSUMED = HostLink(copy_ns=300 * NS_PER_US, bytes_per_s=2048 * MIB)
HOST_BLOCKS_PER_BLOCK = 16
"""Host memory past so many times the device's KV is of little use: what lies there that long was
computed by nobody for as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoom:
    """Host memory for the checkpoints of one position, the same on every rank of its replica."""

    blocks: int = 0
    """Slots. At it the least recently used ends of chains go, never what a waiting sequence
    wants."""
    block_bytes: int = 0
    """One slot, on the rank that has the most in it."""


NO_ROOM = HostRoom()


def host_room(*, host_bytes: int, block_bytes: int, kv_blocks: int) -> HostRoom:
    """Return the slots that fit, no more than are of use."""
    blocks = min(host_bytes // block_bytes, HOST_BLOCKS_PER_BLOCK * kv_blocks)
    return HostRoom(blocks=blocks, block_bytes=block_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """Bounds of checkpoints; each says what happens at it."""

    policy: CheckpointPolicy = "off"
    """eager: every block once it is full; lazy: when blocks run out, the next victims' first."""
    room: HostRoom = NO_ROOM
    """Of a worker that serves the whole model; a planned one has some for each position."""
    copy_share_max: float = 0.03
    """Of the time in which the engine runs, at most so much is spent copying beside it; what is not
    copied for that is copied later, or computed again after an eviction."""
    blocks_per_store_max: int = 64
    """In one StoreBlocks: what waits behind it is a load, at worst."""
    blocks_per_load_max: int = 1024
    """In one LoadBlocks; what a sequence wants beyond it follows in another."""
    loads_max: int = 2
    """Sequences whose KV is brought back at a time; the others wait their turn."""
    link_assumed: HostLink = LINK_ASSUMED
    """Until copies are measured."""

    def __post_init__(self) -> None:
        require(0.0 < self.copy_share_max <= 1.0, "copy_share_max lies in (0, 1]")
        require(self.blocks_per_store_max > 0, "blocks_per_store_max must be positive")
        require(self.loads_max > 0, "loads_max must be positive")

    @property
    def is_on(self) -> bool:
        """Whether there are checkpoints at all."""
        return self.policy != "off"


@dataclass(slots=True, kw_only=True)
class CheckpointCounters:
    """What happened since the process started, for metrics."""

    blocks_stored: int = 0
    blocks_loaded: int = 0
    blocks_flushed: int = 0
    """Of those stored: of sequences that had been evicted before they were copied."""
    blocks_given_up: int = 0
    """Of evicted sequences, not copied and cheaper to compute again."""
    blocks_corrupt: int = 0
    """Found changed in host memory, and computed again."""
    copies_failed: int = 0

"""What the worker supplies to its peer network, and what a copy of KV comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from libs.engine.steps import StepPlan
from libs.kernel.units import NS_PER_S
from libs.transfer.layout import TensorSlice


class PeerHost(Protocol):
    """The worker behind the network. Every method is called on the event loop."""

    def plan_received(self, *, replica_id: str, replica_epoch: int, plan: StepPlan) -> None:
        """Run this plan after all that came before it; only members are told."""

    def peer_lost(
        self, *, replica_id: str, replica_epoch: int, worker_id: str, reason: str
    ) -> None:
        """Take the replica as broken: a member (told to the lead) or the lead (told to a member)
        is gone, silent or has failed. Told once for each; not after `close_replica`."""

    async def kv_offered(
        self, *, replica_id: str, replica_epoch: int, ticket_id: str, hashes: tuple[int, ...]
    ) -> tuple[tuple[int, int], ...]:
        """Reserve a block for each hash that is wanted; only the lead of a target is asked.

        Returns pairs of hash and block in the order of the offer, prefix first; none if nothing is
        wanted. What is reserved stays so until it is committed or the ticket is dropped.
        Raises: TimeoutError if the worker does not come to it; the ticket is then dropped.
        """

    async def kv_committed(
        self, *, replica_id: str, replica_epoch: int, ticket_id: str, hashes: tuple[int, ...]
    ) -> None:
        """Let sessions find these blocks: every rank has stored them."""

    async def kv_dropped(self, *, replica_id: str, replica_epoch: int, ticket_id: str) -> None:
        """Give back what is reserved and not committed: no rank writes to it any more.

        Called exactly once for each ticket that was offered, as the last of it; also for one whose
        offer could not be brought before the worker.
        """


class EngineAccess(Protocol):
    """The KV memory of this worker's positions. What peers export and import runs on the engine's
    thread, between steps.

    Layers and heads are counted over the whole model. The layout of the bytes is
    [layers, blocks, tokens of a block, keys and values, heads, head size]. A call that has returned
    touches the memory no more.
    Raises: Unavailable if the replica has no position here any more, or no such block.
    """

    async def export_kv(
        self,
        *,
        replica_id: str,
        layers: range,
        heads: range,
        block_ids: Sequence[int],
        out: memoryview,
    ) -> None:
        """Gather a rectangle of these blocks; the caller keeps the blocks from changing."""

    async def import_kv(
        self,
        *,
        replica_id: str,
        layers: range,
        heads: range,
        block_ids: Sequence[int],
        data: memoryview,
    ) -> None:
        """Scatter a rectangle into these blocks, which nobody reads yet; `data` is only lent."""

    def request_yield(self, *, replica_id: str, step_id: int) -> None:
        """As a member, end this step at its next safepoint, if it has one left. Returns at once."""

    async def store_to_host(self, *, replica_id: str, pairs: Sequence[tuple[int, int]]) -> None:
        """As a member, copy blocks into slots of host memory, beside the steps."""

    async def load_from_host(
        self, *, replica_id: str, pairs: Sequence[tuple[int, int]]
    ) -> tuple[int, ...]:
        """As a member, copy slots into blocks, beside the steps; return the slots whose content is
        not what was stored."""


class WeightReader(Protocol):
    """Weights that peers may fetch. Runs in a thread of the network; must allow it."""

    def held(self) -> Sequence[TensorSlice]:
        """Return everything that can be read now."""

    def read_into(self, slice_: TensorSlice, out: memoryview) -> None:
        """Copy the bytes of a slice. Raises: Unavailable if it was dropped meanwhile."""


class WeightWriter(Protocol):
    """Where fetched weights go. Runs in a thread of the network; must allow it."""

    def take(self, slice_: TensorSlice, data: memoryview) -> None:
        """Store a verified slice; `data` is only lent. After a cut the same one may come twice."""


class KvCopyEnd(StrEnum):
    """How a copy of KV ended."""

    COMPLETE = "complete"
    """Every block that the target wanted is there; it wants none that it has or has no room for."""
    DEADLINE = "deadline"
    """The time was over; what had been committed stays."""
    PEER_LOST = "peer_lost"
    """A rank of either side is gone or silent; what had been committed stays."""
    REFUSED = "refused"
    """The target does not know the replica under this epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCopySummary:
    """What one copy did. Bytes count what was committed at the target, and nothing twice."""

    end: KvCopyEnd
    message: str
    """What went wrong, for people; empty if nothing did."""
    bytes_planned: int
    """Of the blocks that the target wanted, to all of its ranks, those copied here included."""
    bytes_moved: int
    """Over the network."""
    bytes_copied_here: int
    """To a target rank on the same worker as the rank that sent."""
    blocks_moved: int
    blocks_left: int
    """Wanted by the target and not committed."""
    hashes_committed: tuple[int, ...]
    """Of the blocks moved."""
    duration_ns: int

    def tokens_per_s(self, *, block_tokens: int) -> float:
        """Return how many positions of KV arrived per second."""
        return self.blocks_moved * block_tokens * NS_PER_S / max(1, self.duration_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """Time and memory limits of the network."""

    connect_ns: int = 2 * NS_PER_S
    """Longest wait for one connection."""
    opening_ns: int = 20 * NS_PER_S
    """How long a lead waits for all members to open the replica, which each is told separately."""
    alive_ns: int = NS_PER_S
    """A lead with nothing to say says so after this time."""
    silence_ns: int = 6 * NS_PER_S
    """A step link without a word for so long is lost. Longer than any pause of the interpreter
    (loading, compiling), shorter than the time-out of a collective."""
    answer_ns: int = 5 * NS_PER_S
    """Longest wait for an answer that needs neither a transfer nor an engine."""
    piece_ns: int = 15 * NS_PER_S
    """Longest wait for a peer's engine to come to a step boundary; on a CPU a step may take
    seconds."""
    batch_ns: int = 30 * NS_PER_S
    """Longest wait for a rank to send its part of one batch."""
    batch_bytes_max: int = 64 * 1024 * 1024
    """KV between two commits, all ranks together: what a cut can cost."""
    piece_bytes_max: int = 4 * 1024 * 1024
    """KV that is gathered or scattered at one step boundary."""
    weight_piece_bytes_max: int = 8 * 1024 * 1024
    """Weights that are read or written at once; smaller slices are packed together."""
    fetch_ns: int = 600 * NS_PER_S
    """Longest time of one fetch of weights; it ends much sooner if nothing arrives."""
    fetch_stall_ns: int = 10 * NS_PER_S
    """Longest time in which nothing of a fetch arrives, cuts and new connections included."""
    tickets_max: int = 64
    """Copies into one replica at a time; one more is refused."""
    threads: int = 8
    """Pieces that are gathered, scattered, read or written at a time."""

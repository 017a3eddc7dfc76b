"""Copies the KV of running sessions to a worker on another node, lest this one dies unannounced.

    full blocks, a session's oldest first --CopyBlocks--> spare blocks of the guard, as its cache
    death --router dispatches to whom reports show the prefix--> only what came after is computed

One guard at a time: a replica of any shape on other nodes (`guard_ring.py`). A block counts as
copied once every rank of the guard has its part of it, so that what a session can go on with is the
shortest of all slices; the tokens themselves come from the journal. Online sessions go before
offline ones. The copies take blocks there that nobody uses, and are the first to go when somebody
does; they cost the link no more than the operator allows. What a guard is known to have is not
offered again; if it has forgotten some since, that is computed again.
"""

from dataclasses import dataclass, field

from libs.contracts.handover import ReplicaRoster
from libs.kernel.bounded import RecentMap
from libs.kernel.units import NS_PER_MS, NS_PER_S
from services.gpu_worker.commands import CopyBlocks
from services.gpu_worker.events import BlocksCopied, PeerReported
from services.gpu_worker.guard_ring import GuardRing
from services.gpu_worker.positions import WorkerPosition
from services.gpu_worker.state import WorkerState

BLOCKS_PER_COPY = 64
"""New blocks in one copy; a copy holds the link to a guard for as long."""
HASHES_REMEMBERED = 65_536
"""Blocks that a guard is known to have; older ones would be offered again, and not wanted."""
PAUSE_AFTER_FAILURE_NS = NS_PER_S
PAUSE_NS_MIN = 50 * NS_PER_MS
"""Between two looks at what there is to copy: a block takes longer to fill."""


@dataclass(slots=True, kw_only=True)
class GuardCounters:
    """What happened since the process started, for metrics."""

    copies: int = 0
    copies_failed: int = 0
    blocks_copied: int = 0
    bytes_copied: int = 0


@dataclass(slots=True, kw_only=True)
class _Guard:
    """Whom the copies go to now."""

    replica_id: str
    replica_epoch: int
    hashes_held: RecentMap[int, bool] = field(
        default_factory=lambda: RecentMap(entries_max=HASHES_REMEMBERED)
    )


class Guarding:
    """The source's side of copies against death. `advance` after every event."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._bytes_per_s = state.options.guard_bytes_per_s
        self._ring = GuardRing(state.options)
        self._guard: _Guard | None = None
        self._op_id: str | None = None
        self._position: WorkerPosition | None = None
        """Whose copy is under way."""
        self._next_at_ns = 0
        """When the link has earned what the last copy took."""
        self.counters = GuardCounters()

    def peer_reported(self, event: PeerReported) -> None:
        """Note what another worker says of itself."""
        self._ring.hear(event.report, now_ns=self._state.now_ns)

    def advance(self) -> None:
        """Begin the next copy when its time has come."""
        state, position = self._state, self._state.positions.serving
        is_due = self._bytes_per_s > 0 and self._op_id is None and state.now_ns >= self._next_at_ns
        if not is_due or position is None or not position.is_serving:
            return
        self._next_at_ns = state.now_ns + PAUSE_NS_MIN
        guard = self._ring.choose(position.roster, now_ns=state.now_ns)
        if guard is None:
            return
        blocks = self._next_blocks(position, self._guard_at(guard))
        if blocks:
            self._begin(position, guard, blocks)

    def owns(self, op_id: str) -> bool:
        """Whether the copy of this op_id is one of these."""
        return op_id == self._op_id

    def copied(self, event: BlocksCopied) -> None:
        """Note what the guard has now, and pause for as long as the link may not be used."""
        self._state.reporting.note_link_rates(event.link_rates)
        if self._guard is not None:
            for block_hash in event.hashes_held:
                self._guard.hashes_held.put(block_hash, True)
        self.counters.copies += 1
        self.counters.blocks_copied += event.blocks_moved
        self.counters.bytes_copied += event.bytes_moved
        self._end(pause_ns=event.bytes_moved * NS_PER_S // self._bytes_per_s)

    def copy_failed(self) -> None:
        """Try again after a while: whoever is guard then may have it."""
        self.counters.copies_failed += 1
        self._guard = None
        self._end(pause_ns=PAUSE_AFTER_FAILURE_NS)

    def _guard_at(self, roster: ReplicaRoster) -> _Guard:
        """Return what is known of this guard; nothing, if it is another than before."""
        name = (roster.replica_id, roster.replica_epoch)
        if self._guard is None or name != (self._guard.replica_id, self._guard.replica_epoch):
            self._guard = _Guard(replica_id=name[0], replica_epoch=name[1])
        return self._guard

    def _next_blocks(self, position: WorkerPosition, guard: _Guard) -> tuple[tuple[int, int], ...]:
        """Return the first blocks that the guard lacks, of the sessions with most to lose first."""
        assert position.scheduler is not None
        sessions = self._state.sessions_at(position)
        lacking: dict[int, int] = {}
        for session in sorted(sessions, key=lambda each: each.leaving_order()):
            for block_hash, block in position.scheduler.full_blocks(session.sequence_id):
                if block_hash not in guard.hashes_held:
                    lacking.setdefault(block_hash, block)
            if len(lacking) >= BLOCKS_PER_COPY:
                break
        return tuple(lacking.items())[:BLOCKS_PER_COPY]

    def _begin(
        self,
        position: WorkerPosition,
        target: ReplicaRoster,
        blocks: tuple[tuple[int, int], ...],
    ) -> None:
        assert position.scheduler is not None
        number = self.counters.copies + self.counters.copies_failed
        self._op_id = f"guard-{number}"
        self._position = position
        position.scheduler.pin_blocks(self._op_id, [block for _, block in blocks])
        self._state.emit(
            CopyBlocks(
                op_id=self._op_id,
                source=position.roster,
                target=target,
                blocks=blocks,
                copy_until_unix_ns=None,
                cause_id=self._state.cause_id,
            )
        )

    def _end(self, *, pause_ns: int) -> None:
        assert self._op_id is not None
        assert self._position is not None
        assert self._position.scheduler is not None
        self._position.scheduler.release_blocks(self._op_id)
        self._op_id = self._position = None
        self._next_at_ns = self._state.now_ns + max(pause_ns, PAUSE_NS_MIN)

"""Every known sequence, in exactly one place: waiting, running, or running and giving way."""

from bisect import insort

from libs.engine.scheduling.fair_shares import FairShares
from libs.engine.scheduling.sequence_blocks import SequenceBlocks
from libs.engine.scheduling.tracked_sequence import TrackedSequence
from libs.engine.scheduling.waiting_queue import WaitingQueue
from libs.kernel.core import require


class Roster:
    """Moves sequences between their places, together with their blocks."""

    def __init__(self, blocks: SequenceBlocks, *, is_fair: bool) -> None:
        self.blocks = blocks
        self.shares = FairShares()
        self.waiting = WaitingQueue(self.shares, is_fair=is_fair)
        self.running_online: list[TrackedSequence] = []
        """In the order of service; under a policy that does not tell them apart, all that run."""
        self.running_offline: list[TrackedSequence] = []
        """Those that give way, by rank and arrival."""
        self.closed: list[str] = []
        """Opened by a plan and ended since the last one."""
        self._known: dict[str, TrackedSequence] = {}

    @property
    def known(self) -> list[TrackedSequence]:
        """All, in the order in which they came."""
        return list(self._known.values())

    @property
    def running(self) -> list[TrackedSequence]:
        """All that have blocks."""
        return [*self.running_online, *self.running_offline]

    @property
    def running_count(self) -> int:
        """How many have blocks."""
        return len(self.running_online) + len(self.running_offline)

    def find(self, sequence_id: str) -> TrackedSequence | None:
        """Return the sequence of this name, if it has not ended."""
        return self._known.get(sequence_id)

    def get(self, sequence_id: str) -> TrackedSequence:
        """Return the sequence of this name, which must be known."""
        return self._known[sequence_id]

    def add(self, sequence: TrackedSequence) -> None:
        """Let a new sequence wait."""
        require(sequence.sequence_id not in self._known, f"{sequence.sequence_id} is known already")
        self._known[sequence.sequence_id] = sequence
        if sequence.gives_way:
            self.shares.join(sequence.request.tenant)
        self.waiting.add(sequence)

    def start(self, sequence: TrackedSequence) -> None:
        """Let a waiting sequence that has been given blocks run."""
        self.waiting.remove(sequence)
        insort(self._lane(sequence), sequence, key=TrackedSequence.order)

    def preempt(self, sequence: TrackedSequence) -> None:
        """Take the blocks of a running sequence; it waits again and keeps its tokens."""
        self._lane(sequence).remove(sequence)
        self.blocks.release(sequence)
        sequence.is_preempted = True
        self.waiting.add(sequence)

    def end(self, sequence: TrackedSequence) -> None:
        """Forget a sequence."""
        if sequence.is_running:
            self._lane(sequence).remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.blocks.release(sequence)
        if sequence.gives_way:
            self.shares.leave(sequence.request.tenant)
        del self._known[sequence.sequence_id]
        if sequence.is_opened:
            self.closed.append(sequence.sequence_id)

    def check_invariants(self, *, sequences_max: int, context_tokens_max: int) -> None:
        """Raise InvariantViolation if blocks, places and sequences contradict one another."""
        running = self.running
        self.blocks.check_invariants(running)
        self.waiting.check_invariants()
        for lane in (self.running_online, self.running_offline):
            require(lane == sorted(lane, key=TrackedSequence.order), "running unsorted")
        require(len(running) <= sequences_max, "too many sequences run")
        waiting = list(self.waiting)
        both = [*waiting, *running]
        require(len(both) == len(self._known), "a sequence is in two places or in none")
        for sequence in both:
            name = sequence.sequence_id
            require(self._known.get(name) is sequence, f"{name} is not the known sequence")
            require(sequence.tokens_missing > 0, f"{name} has nothing left to compute")
            require(len(sequence.token_ids) < context_tokens_max, f"{name} is too long")
        for sequence in waiting:
            name = sequence.sequence_id
            require(not sequence.block_ids, f"{name} waits but holds blocks")
            require(sequence.tokens_computed == 0, f"{name} waits but counts computed tokens")
        for sequence in running:
            blocks_needed = self.blocks.pool.blocks_for(sequence.tokens_computed)
            require(blocks_needed <= len(sequence.block_ids), "computed tokens lack a block")

    def _lane(self, sequence: TrackedSequence) -> list[TrackedSequence]:
        return self.running_offline if sequence.gives_way else self.running_online

"""Decides which tokens of which sequences each engine step computes; pure.

Theory of operation. A sequence waits, runs, and ends; a preempted one waits again, keeps its
tokens and recomputes their KV (mostly from the prefix cache, which its blocks feed).

    add -> waiting --admitted: blocks for all its tokens--> running --stop, length, abort--> gone
              ^                                                |
              +----- preempted: blocks released, tokens kept --+

One order rules admission, service and the choice of victims: higher priority first, then
arrival. A step first serves the sequences that lack one token (decodes), then prefills in chunks,
then admits. When a decode finds no block, the last running sequence in that order is preempted.
Liveness: the first sequence in the order can preempt all others and fits the pool alone, so it
always advances, at the latest when the copies under way have ended.
"""

from bisect import insort
from collections.abc import Container, Sequence

from libs.engine.requests import SequenceRequest
from libs.engine.scheduling.options import SchedulerOptions
from libs.engine.scheduling.sequence_blocks import SequenceBlocks
from libs.engine.scheduling.tracked_sequence import TrackedSequence
from libs.engine.steps import (
    EngineLoad,
    OfflineBlocks,
    PlanEntry,
    SampledToken,
    StepPlan,
    StepResult,
    TokenEmitted,
)
from libs.kernel.core import require

__all__ = [
    "EngineLoad",
    "OfflineBlocks",
    "PlanEntry",
    "SampledToken",
    "Scheduler",
    "SchedulerOptions",
    "StepPlan",
    "StepResult",
    "TokenEmitted",
]


class Scheduler:
    """Continuous batching with chunked prefill, prefix cache and preemption by recompute.

    Calls alternate: `schedule` gives a plan, its result goes to `account`, then the next
    `schedule`. `add` and `abort` are free at any time. The same calls give the same plans.
    """

    def __init__(self, options: SchedulerOptions) -> None:
        self.options = options
        self._blocks = SequenceBlocks(
            blocks_total=options.blocks_total,
            block_tokens=options.block_tokens,
            enable_prefix_cache=options.enable_prefix_cache,
        )
        self._pool = self._blocks.pool
        self._holds = self._blocks.holds
        self._stored: Container[int] = frozenset()
        self._sequences: dict[str, TrackedSequence] = {}
        self._waiting: list[TrackedSequence] = []
        self._running: list[TrackedSequence] = []
        self._closed: list[str] = []
        self._plan: StepPlan | None = None
        self._steps_planned = 0
        self._arrivals = 0

    def knows(self, sequence_id: str) -> bool:
        """Whether the sequence was added and has not ended; its id cannot be added again."""
        return sequence_id in self._sequences

    def add(self, request: SequenceRequest) -> None:
        """Queue a sequence that `refuse_reason` does not refuse, under an id that is not known."""
        require(not self.knows(request.sequence_id), f"{request.sequence_id} is known already")
        require(request.prompt_token_ids != (), f"{request.sequence_id} has no prompt")
        require(
            request.tokens_known < self.options.context_tokens_max,
            f"{request.sequence_id} leaves no room to generate",
        )
        sequence = TrackedSequence(
            request=request,
            arrival=self._arrivals,
            token_ids=[*request.prompt_token_ids, *request.generated_token_ids],
        )
        self._arrivals += 1
        self._sequences[request.sequence_id] = sequence
        insort(self._waiting, sequence, key=TrackedSequence.order)

    def abort(self, sequence_id: str) -> bool:
        """End a sequence without a further token; say whether it was there to be ended.

        In a running step its blocks stay its own until `account`.
        """
        sequence = self._sequences.get(sequence_id)
        if sequence is None or sequence.is_aborted:
            return False
        if self._is_in_flight(sequence_id):
            sequence.is_aborted = True
        else:
            self._end(sequence)
        return True

    def schedule(self) -> StepPlan | None:
        """Plan the next step; None if no sequence is known, or none can advance before a copy
        ends and its blocks are released, or before one that is held back is let go."""
        require(self._plan is None, "a step is in flight")
        tokens_left = self.options.step_tokens_max
        waiting_before = len(self._waiting)
        entries = self._plan_decodes()
        tokens_left -= len(entries)
        entries += self._plan_prefills(tokens_left)
        tokens_left = self.options.step_tokens_max - sum(len(entry.token_ids) for entry in entries)
        if len(self._waiting) == waiting_before:
            entries += self._admit(tokens_left)
        if not entries:
            is_explained = not self._sequences or self.may_rest
            require(is_explained, "sequences are left but none can advance")
            return None
        self._plan = StepPlan(
            step_id=self._steps_planned,
            entries=tuple(entries),
            opened=tuple(self._open(entries)),
            closed=tuple(self._closed),
        )
        self._steps_planned += 1
        self._closed.clear()
        return self._plan

    def account(self, result: StepResult) -> tuple[TokenEmitted, ...]:
        """Take in the result of the step in flight; return its tokens in the plan's order."""
        plan = self._plan
        require(plan is not None, "no step is in flight")
        assert plan is not None
        require(result.step_id == plan.step_id, f"step {result.step_id} is not in flight")
        expected = [entry.sequence_id for entry in plan.entries if entry.is_sampling]
        require(expected == [token.sequence_id for token in result.sampled], "tokens are amiss")
        self._plan = None
        for entry in plan.entries:
            sequence = self._sequences[entry.sequence_id]
            sequence.tokens_computed += len(entry.token_ids)
            self._blocks.publish_full(sequence)
        emitted = [
            self._append(sequence, token)
            for token in result.sampled
            if not (sequence := self._sequences[token.sequence_id]).is_aborted
        ]
        for entry in plan.entries:
            planned = self._sequences.get(entry.sequence_id)
            if planned is not None and planned.is_aborted:
                self._end(planned)
        return tuple(emitted)

    def load(self) -> EngineLoad:
        """Report how full the engine is now."""
        unfinished = [*self._waiting, *(s for s in self._running if s.tokens_missing > 1)]
        return EngineLoad(
            blocks_total=self._pool.blocks_total,
            blocks_free=self._pool.blocks_free,
            sequences_running=len(self._running),
            sequences_waiting=len(self._waiting),
            tokens_waiting=sum(sequence.tokens_missing for sequence in unfinished),
        )

    def prefix_hashes(self, limit: int) -> tuple[int, ...]:
        """Return hashes of cached blocks, most recent first, to compare with
        `prefix_block_hashes` of a prompt."""
        return self._pool.recent_hashes(limit)

    @property
    def sequence_ids(self) -> tuple[str, ...]:
        """All that are known, in the order of service."""
        ordered = sorted(self._sequences.values(), key=TrackedSequence.order)
        return tuple(sequence.sequence_id for sequence in ordered)

    @property
    def is_copying(self) -> bool:
        """Whether blocks are pinned or reserved, for which sequences may have to wait."""
        return self._holds.is_any_firm

    def tokens_computed(self, sequence_id: str) -> int:
        """Count the sequence's tokens that have KV; one that waits has none."""
        return self._sequences[sequence_id].tokens_computed

    def full_blocks(self, sequence_id: str) -> tuple[tuple[int, int], ...]:
        """Return (prefix hash, block id) of the sequence's full, computed blocks, first to last.

        A step in flight does not write them. A sequence that waits has none.
        """
        sequence = self._sequences[sequence_id]
        return tuple(zip(self._blocks.full_hashes(sequence), sequence.block_ids, strict=False))

    def find_blocks(self, hashes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return (prefix hash, block id) of those whose content is here, whoever computed it: in
        use by a sequence, or left by one and not overwritten yet. They can be pinned."""
        found = ((block_hash, self._pool.match([block_hash])) for block_hash in hashes)
        return tuple((block_hash, blocks[0]) for block_hash, blocks in found if blocks)

    def set_stored(self, stored: Container[int]) -> None:
        """Say which blocks can be brought back by copying; asked, by hash, whenever it matters.

        Evicting a sequence whose blocks are all stored costs nothing but the way back.
        """
        self._stored = stored

    def waiting_offline_ids(self) -> tuple[str, ...]:
        """The offline sequences that wait, held back or not, in the order of service."""
        return tuple(s.sequence_id for s in self._waiting if s.request.is_offline)

    def wanted_hashes(self, sequence_id: str) -> tuple[int, ...]:
        """Return the prefix hashes that a waiting sequence would look for and not find, first to
        last: what `reserve_imports` may bring. () for one that runs."""
        sequence = self._sequences[sequence_id]
        return () if sequence.is_running else tuple(self._blocks.unmatched_hashes(sequence))

    def hold_back(self, sequence_id: str) -> bool:
        """Let a waiting sequence wait until `let_go`, while others go past it; False, and nothing
        is done, if it does not wait (any more)."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None or sequence.is_running:
            return False
        sequence.is_held_back = True
        return True

    def let_go(self, sequence_id: str) -> None:
        """Admit the sequence in its turn again; harmless for one that ended or was not held."""
        sequence = self._sequences.get(sequence_id)
        if sequence is not None:
            sequence.is_held_back = False

    def offline_blocks(self) -> OfflineBlocks:
        """Count the blocks with computed KV of running offline sequences, each once."""
        computed: dict[int, bool] = {}
        for sequence in self._running:
            if not sequence.request.is_offline:
                continue
            hashes = self._blocks.full_hashes(sequence)
            for block, block_hash in zip(sequence.block_ids, hashes, strict=False):
                computed[block] = block_hash in self._stored
            for block in sequence.block_ids[
                len(hashes) : self._pool.blocks_for(sequence.tokens_computed)
            ]:
                computed[block] = False
        return OfflineBlocks(blocks_computed=len(computed), blocks_stored=sum(computed.values()))

    @property
    def may_rest(self) -> bool:
        """Whether `schedule` may return None although sequences are left: blocks are held for
        copies, or all that wait are held back."""
        return self.is_copying or any(sequence.is_held_back for sequence in self._waiting)

    def pin_blocks(self, ticket: str, block_ids: Sequence[int]) -> None:
        """Keep the content of blocks from `full_blocks` until `release_blocks`."""
        self._holds.pin(ticket, block_ids)

    def reserve_imports(self, ticket: str, hashes: Sequence[int]) -> dict[int, int]:
        """Return blocks to copy content into, by its hash: of those unknown here, in their order,
        as many as fit without preempting anyone. The caller fills them, then commits."""
        if not self.options.enable_prefix_cache:
            return {}
        return self._holds.reserve(ticket, hashes, blocks_spare=len(self._running))

    def commit_imports(self, ticket: str, hashes: Sequence[int]) -> None:
        """Let sequences find reserved blocks whose content has arrived and is verified; until
        `release_blocks` they are evicted only to spare a running sequence."""
        self._holds.commit(ticket, hashes)

    def drop_reserved(self, ticket: str) -> None:
        """End an import halfway: what is committed stays held, what is not is free again."""
        self._holds.drop_reserved(ticket)

    def release_blocks(self, ticket: str) -> None:
        """End a copy, whether it went well or not: committed blocks stay as cached ones, reserved
        ones are free, pinned ones are their sequences' own. An unknown ticket holds nothing."""
        self._holds.release(ticket)

    def check_invariants(self) -> None:
        """Raise InvariantViolation if blocks, queues and sequences contradict one another."""
        self._blocks.check_invariants(self._running)
        require(
            self._waiting == sorted(self._waiting, key=TrackedSequence.order), "waiting unsorted"
        )
        require(
            self._running == sorted(self._running, key=TrackedSequence.order), "running unsorted"
        )
        require(len(self._running) <= self.options.sequences_max, "too many sequences run")
        both = [*self._waiting, *self._running]
        require(len(both) == len(self._sequences), "a sequence is in two queues or in none")
        for sequence in both:
            name = sequence.sequence_id
            require(self._sequences.get(name) is sequence, f"{name} is not the known sequence")
            require(sequence.tokens_missing > 0, f"{name} has nothing left to compute")
            require(
                len(sequence.token_ids) < self.options.context_tokens_max, f"{name} is too long"
            )
        for sequence in self._waiting:
            name = sequence.sequence_id
            require(not sequence.block_ids, f"{name} waits but holds blocks")
            require(sequence.tokens_computed == 0, f"{name} waits but counts computed tokens")
        for sequence in self._running:
            blocks_needed = self._pool.blocks_for(sequence.tokens_computed)
            require(blocks_needed <= len(sequence.block_ids), "computed tokens lack a block")

    def _plan_decodes(self) -> list[PlanEntry]:
        entries = []
        # Best first: a victim is always later in the order, hence never planned already.
        for sequence in list(self._running):
            if sequence.tokens_missing != 1 or not sequence.is_running:
                continue
            if self._grow(sequence):
                entries.append(self._entry(sequence, tokens=1))
        return entries

    def _plan_prefills(self, tokens_left: int) -> list[PlanEntry]:
        entries = []
        for sequence in self._running:
            if sequence.tokens_missing > 1 and tokens_left > 0:
                tokens = min(sequence.tokens_missing, tokens_left)
                entries.append(self._entry(sequence, tokens=tokens))
                tokens_left -= tokens
        return entries

    def _admit(self, tokens_left: int) -> list[PlanEntry]:
        entries = []
        for sequence in [s for s in self._waiting if not s.is_held_back]:
            is_full = len(self._running) >= self.options.sequences_max
            if tokens_left <= 0 or is_full or not self._reserve(sequence):
                break
            self._waiting.remove(sequence)
            insort(self._running, sequence, key=TrackedSequence.order)
            tokens = min(sequence.tokens_missing, tokens_left)
            entries.append(self._entry(sequence, tokens=tokens))
            tokens_left -= tokens
        return entries

    def _reserve(self, sequence: TrackedSequence) -> bool:
        """Give a waiting sequence all the blocks that it needs now.

        One more block per running sequence stays free, so that an admission is not followed by
        a preemption at the next block boundary.
        """
        while not self._blocks.admit(sequence, blocks_spare=len(self._running)):
            if self._running or not self._holds.give_up_committed():
                return False
        return True

    def _grow(self, sequence: TrackedSequence) -> bool:
        """Make room for the sequence's next token, by preemption if need be; False if it was
        itself the one to be preempted."""
        if self._blocks.has_room_for_next_token(sequence):
            return True
        while not self._pool.can_allocate(1):
            if self._holds.give_up_committed():
                continue
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        self._blocks.grow(sequence)
        return True

    def _preempt(self, sequence: TrackedSequence) -> None:
        self._running.remove(sequence)
        self._blocks.release(sequence)
        insort(self._waiting, sequence, key=TrackedSequence.order)

    def _entry(self, sequence: TrackedSequence, *, tokens: int) -> PlanEntry:
        start = sequence.tokens_computed
        blocks = self._pool.blocks_for(start + tokens)
        return PlanEntry(
            sequence_id=sequence.sequence_id,
            token_ids=tuple(sequence.token_ids[start : start + tokens]),
            start_position=start,
            block_table=tuple(sequence.block_ids[:blocks]),
            is_sampling=tokens == sequence.tokens_missing,
            output_index=sequence.output_index,
            tokens_scored=sequence.tokens_scored(tokens),
        )

    def _open(self, entries: list[PlanEntry]) -> list[SequenceRequest]:
        opened = []
        for entry in entries:
            sequence = self._sequences[entry.sequence_id]
            if not sequence.is_opened:
                sequence.is_opened = True
                opened.append(sequence.request)
        return opened

    def _append(self, sequence: TrackedSequence, token: SampledToken) -> TokenEmitted:
        index = sequence.output_index
        sequence.token_ids.append(token.token_id)
        reason = sequence.finish_reason(
            token,
            eos_token_ids=self.options.eos_token_ids,
            context_tokens_max=self.options.context_tokens_max,
        )
        if reason is not None:
            self._end(sequence)
        return TokenEmitted(
            sequence_id=token.sequence_id,
            index=index,
            token_id=token.token_id,
            text=token.text if reason is None else token.text_if_last,
            finish_reason=reason,
            logprobs=token.logprobs,
        )

    def _end(self, sequence: TrackedSequence) -> None:
        queue = self._running if sequence.is_running else self._waiting
        queue.remove(sequence)
        self._blocks.release(sequence)
        del self._sequences[sequence.sequence_id]
        if sequence.is_opened:
            self._closed.append(sequence.sequence_id)

    def _is_in_flight(self, sequence_id: str) -> bool:
        if self._plan is None:
            return False
        return any(entry.sequence_id == sequence_id for entry in self._plan.entries)

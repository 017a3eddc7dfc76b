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
from collections.abc import Sequence
from dataclasses import dataclass, field

from libs.engine.block_holds import BlockHolds
from libs.engine.block_pool import BlockPool
from libs.engine.prefix_hashes import child_hash, root_hash
from libs.engine.requests import SequenceRequest
from libs.engine.steps import (
    EngineLoad,
    FinishReason,
    PlanEntry,
    SampledToken,
    StepPlan,
    StepResult,
    TokenEmitted,
)
from libs.kernel.core import require

__all__ = [
    "EngineLoad",
    "PlanEntry",
    "SampledToken",
    "Scheduler",
    "SchedulerOptions",
    "StepPlan",
    "StepResult",
    "TokenEmitted",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """The bounds of one engine."""

    step_tokens_max: int
    """Tokens computed in one step at most; bounds how long a decode waits for a prefill. At
    least sequences_max, so that every running sequence advances in every step."""
    sequences_max: int
    """Sequences running at a time at most; more of them wait."""
    block_tokens: int
    """Tokens per KV block; a prefix is shared in whole blocks."""
    blocks_total: int
    """KV blocks of the pool."""
    context_tokens_max: int
    """Prompt and generated tokens of one sequence at most; fits the pool."""
    eos_token_ids: frozenset[int]
    """Tokens that end a sequence unless it ignores them."""
    enable_prefix_cache: bool = True
    """Whether full blocks are kept for other sequences after their own has ended."""

    def __post_init__(self) -> None:
        require(self.sequences_max > 0, "sequences_max must be positive")
        require(
            self.step_tokens_max >= self.sequences_max,
            "step_tokens_max must be at least sequences_max",
        )
        require(
            2 <= self.context_tokens_max <= self.blocks_total * self.block_tokens,
            "context_tokens_max must be at least 2 and fit the block pool",
        )


@dataclass(slots=True, kw_only=True, eq=False)
class _Sequence:
    request: SequenceRequest
    arrival: int
    token_ids: list[int]
    """Prompt and generated tokens; the last one's KV is never computed yet."""
    tokens_computed: int = 0
    block_ids: list[int] = field(default_factory=list)
    blocks_published: int = 0
    """Blocks of block_ids, from the first, that the pool knows by hash."""
    block_hashes: list[int] = field(default_factory=list)
    """Of the first full blocks of token_ids, as far as they were needed."""
    is_opened: bool = False
    is_aborted: bool = False

    @property
    def tokens_missing(self) -> int:
        return len(self.token_ids) - self.tokens_computed

    @property
    def output_index(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def is_prompt_scored(self) -> bool:
        """Whether the prompt's log probabilities are still owed."""
        return self.request.needs_prompt_scores and self.output_index == 0

    def tokens_scored(self, tokens: int) -> int:
        """Count those of the next tokens that have a prompt token to score after them."""
        if not self.is_prompt_scored:
            return 0
        # All of the prompt is owed a score but its first token.
        return min(tokens, self.tokens_missing - 1)

    def order(self) -> tuple[int, int]:
        return (-self.request.priority, self.arrival)


class Scheduler:
    """Continuous batching with chunked prefill, prefix cache and preemption by recompute.

    Calls alternate: `schedule` gives a plan, its result goes to `account`, then the next
    `schedule`. `add` and `abort` are free at any time. The same calls give the same plans.
    """

    def __init__(self, options: SchedulerOptions) -> None:
        self.options = options
        self._pool = BlockPool(blocks_total=options.blocks_total, block_tokens=options.block_tokens)
        self._holds = BlockHolds(self._pool)
        self._sequences: dict[str, _Sequence] = {}
        self._waiting: list[_Sequence] = []
        self._running: list[_Sequence] = []
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
        sequence = _Sequence(
            request=request,
            arrival=self._arrivals,
            token_ids=[*request.prompt_token_ids, *request.generated_token_ids],
        )
        self._arrivals += 1
        self._sequences[request.sequence_id] = sequence
        insort(self._waiting, sequence, key=_Sequence.order)

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
        ends and its blocks are released."""
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
            is_explained = not self._sequences or self.is_copying
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
            self._publish_full_blocks(sequence)
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
        ordered = sorted(self._sequences.values(), key=_Sequence.order)
        return tuple(sequence.request.sequence_id for sequence in ordered)

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
        blocks = sequence.tokens_computed // self.options.block_tokens
        self._hash_blocks(sequence, blocks=blocks)
        return tuple(zip(sequence.block_hashes[:blocks], sequence.block_ids, strict=False))

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
        tables = [sequence.block_ids for sequence in self._running]
        self._pool.check_invariants([*tables, *self._holds.block_tables])
        self._holds.check_invariants()
        require(self._waiting == sorted(self._waiting, key=_Sequence.order), "waiting unsorted")
        require(self._running == sorted(self._running, key=_Sequence.order), "running unsorted")
        require(len(self._running) <= self.options.sequences_max, "too many sequences run")
        both = [*self._waiting, *self._running]
        require(len(both) == len(self._sequences), "a sequence is in two queues or in none")
        for sequence in both:
            name = sequence.request.sequence_id
            require(self._sequences.get(name) is sequence, f"{name} is not the known sequence")
            require(sequence.tokens_missing > 0, f"{name} has nothing left to compute")
            require(
                len(sequence.token_ids) < self.options.context_tokens_max, f"{name} is too long"
            )
        for sequence in self._waiting:
            name = sequence.request.sequence_id
            require(not sequence.block_ids, f"{name} waits but holds blocks")
            require(sequence.tokens_computed == 0, f"{name} waits but counts computed tokens")
        for sequence in self._running:
            blocks_needed = self._pool.blocks_for(sequence.tokens_computed)
            require(blocks_needed <= len(sequence.block_ids), "computed tokens lack a block")

    def _plan_decodes(self) -> list[PlanEntry]:
        entries = []
        # Best first: a victim is always later in the order, hence never planned already.
        for sequence in list(self._running):
            if sequence.tokens_missing != 1 or not self._is_running(sequence):
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
        while self._waiting and tokens_left > 0:
            if len(self._running) >= self.options.sequences_max:
                break
            sequence = self._waiting[0]
            if not self._reserve(sequence):
                break
            del self._waiting[0]
            insort(self._running, sequence, key=_Sequence.order)
            tokens = min(sequence.tokens_missing, tokens_left)
            entries.append(self._entry(sequence, tokens=tokens))
            tokens_left -= tokens
        return entries

    def _reserve(self, sequence: _Sequence) -> bool:
        """Give a waiting sequence cached blocks of its prefix and empty ones for all the rest.

        One more block per running sequence stays free, so that an admission is not followed by
        a preemption at the next block boundary.
        """
        matched = self._pool.match(self._matchable_hashes(sequence))
        self._pool.acquire(matched)
        blocks_missing = self._pool.blocks_for(len(sequence.token_ids)) - len(matched)
        while not self._pool.can_allocate(blocks_missing + len(self._running)):
            if self._running or not self._holds.give_up_committed():
                self._pool.release(matched)
                return False
        sequence.block_ids = matched + self._pool.allocate(blocks_missing)
        sequence.blocks_published = len(matched)
        sequence.tokens_computed = len(matched) * self.options.block_tokens
        return True

    def _matchable_hashes(self, sequence: _Sequence) -> list[int]:
        """Hashes of the full blocks before the last token, which is always computed anew because
        its logits are needed. None while a prompt is scored: all of its logits are."""
        if not self.options.enable_prefix_cache or sequence.is_prompt_scored:
            return []
        blocks = (len(sequence.token_ids) - 1) // self.options.block_tokens
        self._hash_blocks(sequence, blocks=blocks)
        return sequence.block_hashes[:blocks]

    def _publish_full_blocks(self, sequence: _Sequence) -> None:
        if not self.options.enable_prefix_cache:
            return
        blocks = sequence.tokens_computed // self.options.block_tokens
        self._hash_blocks(sequence, blocks=blocks)
        for index in range(sequence.blocks_published, blocks):
            self._pool.publish(sequence.block_ids[index], sequence.block_hashes[index])
        sequence.blocks_published = blocks

    def _hash_blocks(self, sequence: _Sequence, *, blocks: int) -> None:
        size = self.options.block_tokens
        hashes = sequence.block_hashes
        for index in range(len(hashes), blocks):
            parent = hashes[-1] if hashes else root_hash(sequence.request.cache_salt)
            hashes.append(child_hash(parent, sequence.token_ids[index * size : (index + 1) * size]))

    def _grow(self, sequence: _Sequence) -> bool:
        """Make room for the sequence's next token, by preemption if need be; False if it was
        itself the one to be preempted."""
        blocks_needed = self._pool.blocks_for(sequence.tokens_computed + 1)
        if blocks_needed <= len(sequence.block_ids):
            return True
        while not self._pool.can_allocate(1):
            if self._holds.give_up_committed():
                continue
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.block_ids += self._pool.allocate(1)
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        insort(self._waiting, sequence, key=_Sequence.order)

    def _release(self, sequence: _Sequence) -> None:
        self._pool.release(sequence.block_ids)
        sequence.block_ids = []
        sequence.blocks_published = 0
        sequence.tokens_computed = 0

    def _entry(self, sequence: _Sequence, *, tokens: int) -> PlanEntry:
        start = sequence.tokens_computed
        blocks = self._pool.blocks_for(start + tokens)
        return PlanEntry(
            sequence_id=sequence.request.sequence_id,
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

    def _append(self, sequence: _Sequence, token: SampledToken) -> TokenEmitted:
        index = sequence.output_index
        sequence.token_ids.append(token.token_id)
        reason = self._finish_reason(sequence, token)
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

    def _finish_reason(self, sequence: _Sequence, token: SampledToken) -> FinishReason | None:
        stop = sequence.request.stop
        if token.is_cut_off:
            return "length"
        if token.is_stop_matched:
            return "stop"
        if stop.is_stop_token(
            token.token_id,
            output_index=sequence.output_index - 1,
            eos_token_ids=self.options.eos_token_ids,
        ):
            return "stop"
        if sequence.output_index >= stop.max_tokens:
            return "length"
        if len(sequence.token_ids) >= self.options.context_tokens_max:
            return "length"
        return None

    def _end(self, sequence: _Sequence) -> None:
        queue = self._running if self._is_running(sequence) else self._waiting
        queue.remove(sequence)
        self._release(sequence)
        del self._sequences[sequence.request.sequence_id]
        if sequence.is_opened:
            self._closed.append(sequence.request.sequence_id)

    def _is_running(self, sequence: _Sequence) -> bool:
        return bool(sequence.block_ids)

    def _is_in_flight(self, sequence_id: str) -> bool:
        if self._plan is None:
            return False
        return any(entry.sequence_id == sequence_id for entry in self._plan.entries)

"""Decides which tokens of which sequences each engine step computes; pure.

Theory of operation. A sequence waits, runs, and ends; a preempted one waits again, keeps its
tokens and recomputes their KV (mostly from the prefix cache, which its blocks feed).

    add -> waiting --admitted: blocks for all its tokens--> running --stop, length, abort--> gone
              ^                                                |
              +----- preempted: blocks released, tokens kept --+

A step is planned, runs, and is accounted; or it yields, and then nothing of it counts.

    schedule(now) -> StepPlan -> account(result, now)      tokens computed, hashes known, counters
           |              +----> account(yielded, now)     all as before the plan
           +-> step_to_yield(now)                          while it runs: is somebody late else?

Who is served is decided in libs/engine/scheduling, one noun per module: `step_planner` composes,
`coserve` has the policies, `victims` says who makes room, `step_timing` what time is left.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final

from libs.engine.requests import SequenceRequest
from libs.engine.scheduling.options import SchedulerOptions
from libs.engine.scheduling.roster import Roster
from libs.engine.scheduling.sequence_blocks import SequenceBlocks
from libs.engine.scheduling.step_planner import ComposedStep, StepPlanner
from libs.engine.scheduling.step_timing import StepTiming
from libs.engine.scheduling.tally import CoserveTally
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

YIELD_GAIN_MIN: Final = 2
"""Yielding early must spare online sequences so many times the waiting, added up, that the step
has taken so far. Arrivals at any time then cost a lone step 1/18 of itself on average, and wait
for 2/9 of it instead of half."""


@dataclass(slots=True, kw_only=True)
class _StepInFlight:
    plan: StepPlan
    composed: ComposedStep
    predicted_ns: int
    is_asked_to_yield: bool = False


class Scheduler:
    """Continuous batching with chunked prefill, prefix cache and preemption by recompute, for
    online and offline sequences together.

    Calls alternate: `schedule` gives a plan, its result goes to `account`, then the next
    `schedule`. `add` and `abort` are free at any time. The same calls give the same plans. Time is
    an argument and never goes back.
    """

    def __init__(self, options: SchedulerOptions, *, tally: CoserveTally | None = None) -> None:
        """`tally` goes on counting what another scheduler has begun."""
        self.options = options
        self.tally = tally or CoserveTally()
        self._rules = options.coserve.rules
        self._blocks = SequenceBlocks(
            blocks_total=options.blocks_total,
            block_tokens=options.block_tokens,
            enable_prefix_cache=options.enable_prefix_cache,
        )
        self._roster = Roster(self._blocks, is_fair=self._rules.is_fair)
        self.timing = StepTiming(
            options.coserve, layers=options.layers, step_tokens_max=options.step_tokens_max
        )
        self._planner = StepPlanner(
            options, roster=self._roster, timing=self.timing, tally=self.tally
        )
        self._in_flight: _StepInFlight | None = None
        self._steps_planned = 0
        self._arrivals = 0

    # ------------------------------------------------------------------ sequences

    def knows(self, sequence_id: str) -> bool:
        """Whether the sequence was added and has not ended; its id cannot be added again."""
        return self._roster.find(sequence_id) is not None

    def add(self, request: SequenceRequest, *, now_ns: int) -> None:
        """Queue a sequence that `refuse_reason` does not refuse, under an id that is not known."""
        require(request.prompt_token_ids != (), f"{request.sequence_id} has no prompt")
        require(
            request.tokens_known < self.options.context_tokens_max,
            f"{request.sequence_id} leaves no room to generate",
        )
        ranked = request.priority if self._rules.ranks_by_priority else max(0, request.priority)
        sequence = TrackedSequence(
            request=request,
            arrival=self._arrivals,
            rank=-ranked,
            gives_way=request.is_offline and self._rules.is_online_first,
            added_at_ns=now_ns,
            token_ids=[*request.prompt_token_ids, *request.generated_token_ids],
        )
        self._arrivals += 1
        self._roster.add(sequence)

    def abort(self, sequence_id: str) -> bool:
        """End a sequence without a further token; say whether it was there to be ended.

        In a running step its blocks stay its own until `account`.
        """
        sequence = self._roster.find(sequence_id)
        if sequence is None or sequence.is_aborted:
            return False
        if self._in_flight is not None and sequence_id in self._in_flight.composed.planned:
            sequence.is_aborted = True
        else:
            self._roster.end(sequence)
        return True

    # ------------------------------------------------------------------ steps

    def schedule(self, *, now_ns: int) -> StepPlan | None:
        """Plan the next step; None if no sequence is known, or where `may_rest` explains it."""
        require(self._in_flight is None, "a step is in flight")
        composed = self._planner.compose(now_ns=now_ns)
        if not composed.entries:
            is_explained = not self._roster.known or self.may_rest
            require(is_explained, "sequences are left but none can advance")
            return None
        predicted_ns = self.timing.predict_ns(composed.budget.work)
        plan = StepPlan(
            step_id=self._steps_planned,
            entries=tuple(composed.entries),
            opened=tuple(self._open(composed)),
            closed=tuple(self._roster.closed),
            layers_between_safepoints=None
            if composed.has_online
            else self.timing.layers_between_safepoints(predicted_ns),
        )
        self._in_flight = _StepInFlight(plan=plan, composed=composed, predicted_ns=predicted_ns)
        self._steps_planned += 1
        self._roster.closed.clear()
        return plan

    def account(self, result: StepResult, *, now_ns: int) -> tuple[TokenEmitted, ...]:
        """Take in the result of the step in flight; return its tokens in the plan's order."""
        step = self._in_flight
        require(step is not None, "no step is in flight")
        assert step is not None
        require(result.step_id == step.plan.step_id, f"step {result.step_id} is not in flight")
        expected = [entry.sequence_id for entry in step.plan.entries if entry.is_sampling]
        sampled = [token.sequence_id for token in result.sampled]
        require(sampled == ([] if result.is_yielded else expected), "tokens are amiss")
        self._in_flight = None
        emitted = () if result.is_yielded else self._commit(step, result, now_ns=now_ns)
        if result.is_yielded:
            self._take_back(step)
        for sequence in step.composed.planned.values():
            if sequence.is_aborted:
                self._roster.end(sequence)
        return emitted

    def step_to_yield(self, *, now_ns: int) -> int | None:
        """Return the running step, once, if an online sequence that waits would miss its TTFT SLO
        by waiting for its end, or where the policy yields early, if all that wait gain much more
        time than the step loses; and if they could be admitted then.

        To be asked whenever a sequence was added while a step runs.
        """
        step = self._in_flight
        if step is None or step.is_asked_to_yield:
            return None
        layers = step.plan.layers_between_safepoints
        if layers is None:
            return None
        # Overdue, it may end at any time: at worst as late as if it were asked to yield now.
        ends_at_ns = step.composed.now_ns + step.predicted_ns
        left_ns = max(ends_at_ns - now_ns, self.timing.group_ns(step.predicted_ns, layers))
        passed_ns = now_ns - step.composed.now_ns
        if not (
            self._is_anybody_late(left_ns, now_ns=now_ns)
            or (self._rules.yields_early and self._pays_to_yield(passed_ns, left_ns=left_ns))
        ):
            return None
        step.is_asked_to_yield = True
        return step.plan.step_id

    # ------------------------------------------------------------------ what is here now

    def load(self) -> EngineLoad:
        """Report how full the engine is now."""
        roster, pool = self._roster, self._blocks.pool
        unfinished = [s for s in roster.known if not s.is_running or s.tokens_missing > 1]
        offline = [s for s in roster.known if s.request.is_offline]
        offline_running = sum(sequence.is_running for sequence in offline)
        return EngineLoad(
            blocks_total=pool.blocks_total,
            blocks_free=pool.blocks_free,
            sequences_running=roster.running_count,
            sequences_waiting=len(roster.waiting),
            tokens_waiting=sum(sequence.tokens_missing for sequence in unfinished),
            offline_running=offline_running,
            offline_waiting=len(offline) - offline_running,
            offline_tokens_waiting=sum(
                sequence.tokens_missing for sequence in unfinished if sequence.request.is_offline
            ),
            blocks_reserved_for_online=self._planner.blocks_reserved_for_online,
        )

    @property
    def blocks_free(self) -> int:
        """`load().blocks_free`, without looking at every sequence."""
        return self._blocks.pool.blocks_free

    def prefix_hashes(self, limit: int) -> tuple[int, ...]:
        """Return hashes of cached blocks, most recent first, to compare with
        `prefix_block_hashes` of a prompt."""
        return self._blocks.pool.recent_hashes(limit)

    @property
    def sequence_ids(self) -> tuple[str, ...]:
        """All that are known, by rank and arrival."""
        ordered = sorted(self._roster.known, key=TrackedSequence.order)
        return tuple(sequence.sequence_id for sequence in ordered)

    @property
    def is_copying(self) -> bool:
        """Whether blocks are pinned or reserved, for which sequences may have to wait."""
        return self._blocks.holds.is_any_firm

    @property
    def may_rest(self) -> bool:
        """Whether `schedule` may return None although sequences are left: blocks are held for
        copies, all that wait are held back, or the policy never serves offline ones."""
        return (
            self.is_copying
            or any(sequence.is_held_back for sequence in self._roster.waiting)
            or not self._rules.admits_offline
        )

    def tokens_computed(self, sequence_id: str) -> int:
        """Count the sequence's tokens that have KV; one that waits has none."""
        return self._roster.get(sequence_id).tokens_computed

    def full_blocks(self, sequence_id: str) -> tuple[tuple[int, int], ...]:
        """Return (prefix hash, block id) of the sequence's full, computed blocks, first to last.

        A step in flight does not write them. A sequence that waits has none.
        """
        sequence = self._roster.get(sequence_id)
        return tuple(zip(self._blocks.full_hashes(sequence), sequence.block_ids, strict=False))

    # ------------------------------------------------------------------ KV stored elsewhere

    def find_blocks(self, hashes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return (prefix hash, block id) of those whose content is here, whoever computed it: in
        use by a sequence, or left by one and not overwritten yet. They can be pinned."""
        found = ((block_hash, self._blocks.pool.match([block_hash])) for block_hash in hashes)
        return tuple((block_hash, blocks[0]) for block_hash, blocks in found if blocks)

    def set_stored(self, stored: Container[int]) -> None:
        """Say which blocks can be brought back by copying; asked, by hash, whenever it matters.

        Evicting a sequence whose blocks are all stored costs nothing but the way back.
        """
        self._planner.stored = stored

    def offline_blocks(self) -> OfflineBlocks:
        """Count the blocks with computed KV of running offline sequences, each once."""
        is_stored: dict[int, bool] = {}
        for sequence in self._roster.running:
            if not sequence.request.is_offline:
                continue
            hashes = self._blocks.full_hashes(sequence)
            blocks = self._blocks.pool.blocks_for(sequence.tokens_computed)
            is_stored |= dict.fromkeys(sequence.block_ids[len(hashes) : blocks], False)
            for block, block_hash in zip(sequence.block_ids, hashes, strict=False):
                is_stored[block] = block_hash in self._planner.stored
        return OfflineBlocks(blocks_computed=len(is_stored), blocks_stored=sum(is_stored.values()))

    def waiting_offline_ids(self) -> tuple[str, ...]:
        """The offline sequences that wait, held back or not, in the order of service."""
        return tuple(s.sequence_id for s in self._roster.waiting if s.request.is_offline)

    def wanted_hashes(self, sequence_id: str) -> tuple[int, ...]:
        """Return the prefix hashes that a waiting sequence would look for and not find, first to
        last: what `reserve_imports` may bring. () for one that runs."""
        sequence = self._roster.get(sequence_id)
        return () if sequence.is_running else tuple(self._blocks.unmatched_hashes(sequence))

    def hold_back(self, sequence_id: str) -> bool:
        """Let a waiting sequence wait until `let_go`, while others go past it; False, and nothing
        is done, if it does not wait (any more)."""
        sequence = self._roster.find(sequence_id)
        if sequence is None or sequence.is_running:
            return False
        sequence.is_held_back = True
        return True

    def let_go(self, sequence_id: str) -> None:
        """Admit the sequence in its turn again; harmless for one that ended or was not held."""
        sequence = self._roster.find(sequence_id)
        if sequence is not None:
            sequence.is_held_back = False

    def pin_blocks(self, ticket: str, block_ids: Sequence[int]) -> None:
        """Keep the content of blocks from `full_blocks` until `release_blocks`."""
        self._blocks.holds.pin(ticket, block_ids)

    def reserve_imports(self, ticket: str, hashes: Sequence[int]) -> dict[int, int]:
        """Return blocks to copy content into, by its hash: of those unknown here, in their order,
        as many as fit without preempting anyone. The caller fills them, then commits."""
        if not self.options.enable_prefix_cache:
            return {}
        running = self._roster.running_count
        return self._blocks.holds.reserve(ticket, hashes, blocks_spare=running)

    def commit_imports(self, ticket: str, hashes: Sequence[int]) -> None:
        """Let sequences find reserved blocks whose content has arrived and is verified; until
        `release_blocks` they are evicted only to spare a running sequence."""
        self._blocks.holds.commit(ticket, hashes)

    def drop_reserved(self, ticket: str) -> None:
        """End an import halfway: what is committed stays held, what is not is free again."""
        self._blocks.holds.drop_reserved(ticket)

    def release_blocks(self, ticket: str) -> None:
        """End a copy, whether it went well or not: committed blocks stay as cached ones, reserved
        ones are free, pinned ones are their sequences' own. An unknown ticket holds nothing."""
        self._blocks.holds.release(ticket)

    def check_invariants(self) -> None:
        """Raise InvariantViolation if blocks, queues and sequences contradict one another."""
        self._roster.check_invariants(
            sequences_max=self.options.sequences_max,
            context_tokens_max=self.options.context_tokens_max,
        )

    # ------------------------------------------------------------------ accounting

    def _open(self, composed: ComposedStep) -> list[SequenceRequest]:
        opened = []
        for sequence in composed.planned.values():
            if not sequence.is_opened:
                sequence.is_opened = True
                opened.append(sequence.request)
        return opened

    def _commit(
        self, step: _StepInFlight, result: StepResult, *, now_ns: int
    ) -> tuple[TokenEmitted, ...]:
        for entry in step.plan.entries:
            self._note_computed(step.composed.planned[entry.sequence_id], len(entry.token_ids))
        self._note_step(step, now_ns=now_ns)
        return tuple(
            self._append(sequence, token, now_ns=now_ns)
            for token in result.sampled
            if not (sequence := self._roster.get(token.sequence_id)).is_aborted
        )

    def _note_computed(self, sequence: TrackedSequence, tokens: int) -> None:
        sequence.tokens_computed += tokens
        fresh = min(tokens, max(0, sequence.tokens_computed - sequence.tokens_computed_ever))
        sequence.tokens_computed_ever = max(sequence.tokens_computed_ever, sequence.tokens_computed)
        self.tally.note_tokens(
            is_offline=sequence.request.is_offline, fresh=fresh, repeated=tokens - fresh
        )
        self._blocks.publish_full(sequence)

    def _note_step(self, step: _StepInFlight, *, now_ns: int) -> None:
        tally, composed = self.tally, step.composed
        is_offline = {sequence.request.is_offline for sequence in composed.planned.values()}
        tally.steps_mixed += len(is_offline) == 2
        tally.steps_offline += is_offline == {True}
        tally.steps_online += is_offline == {False}
        duration_ns = now_ns - composed.now_ns
        if duration_ns <= 0:
            return  # nobody measures time here
        tally.predicted_ns += step.predicted_ns
        tally.observed_ns += duration_ns
        self.timing.observe(
            composed.budget.work,
            duration_ns=duration_ns,
            predicted_ns=step.predicted_ns,
            slack_ns=composed.slack_ns if len(is_offline) == 2 else None,
        )

    def _take_back(self, step: _StepInFlight) -> None:
        """Leave everything as it was before the plan; what was opened stays open."""
        require(step.plan.layers_between_safepoints is not None, "the step could not yield")
        self.tally.steps_yielded += 1
        self.tally.tokens_yielded += sum(len(entry.token_ids) for entry in step.plan.entries)
        for tenant, cost in sorted(step.composed.charges.items()):
            self._roster.shares.charge(tenant, -cost)

    def _is_anybody_late(self, left_ns: int, *, now_ns: int) -> bool:
        coserve = self.options.coserve
        for sequence in self._roster.waiting.online():
            if not self._planner.can_make_room(sequence):
                return False
            due_ns = sequence.next_token_due_ns(
                ttft_slo_ns=coserve.ttft_slo_ns, tbt_slo_ns=coserve.tbt_slo_ns
            )
            left_ns += self.timing.prefill_ns(
                sequence.tokens_missing - self._blocks.tokens_cached(sequence), tokens_before=0
            )
            if now_ns + round(left_ns * self.timing.margin) > due_ns:
                return True
        return False

    def _pays_to_yield(self, passed_ns: int, *, left_ns: int) -> bool:
        waiting = self._roster.waiting.online()
        if not waiting or not self._planner.can_make_room(waiting[0]):
            return False
        return left_ns * len(waiting) >= YIELD_GAIN_MIN * passed_ns

    def _append(
        self, sequence: TrackedSequence, token: SampledToken, *, now_ns: int
    ) -> TokenEmitted:
        index = sequence.output_index
        self._note_token(sequence, now_ns=now_ns)
        sequence.token_ids.append(token.token_id)
        reason = sequence.finish_reason(
            token,
            eos_token_ids=self.options.eos_token_ids,
            context_tokens_max=self.options.context_tokens_max,
        )
        if reason is not None:
            self._roster.end(sequence)
        return TokenEmitted(
            sequence_id=token.sequence_id,
            index=index,
            token_id=token.token_id,
            text=token.text if reason is None else token.text_if_last,
            finish_reason=reason,
            logprobs=token.logprobs,
        )

    def _note_token(self, sequence: TrackedSequence, *, now_ns: int) -> None:
        coserve, last_ns = self.options.coserve, sequence.last_token_at_ns
        sequence.last_token_at_ns = now_ns
        if sequence.request.is_offline:
            return
        if last_ns is not None:
            self.tally.note_token(
                wait_ns=now_ns - last_ns, slo_ns=coserve.tbt_slo_ns, is_first=False
            )
        elif sequence.output_index == 0:
            # One that came from elsewhere has had its first token there.
            self.tally.note_token(
                wait_ns=now_ns - sequence.added_at_ns, slo_ns=coserve.ttft_slo_ns, is_first=True
            )

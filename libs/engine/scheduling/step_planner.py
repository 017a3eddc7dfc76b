"""Composes a step: who is served, who is admitted, who makes room.

    1. online: decodes, then prefills in chunks, then admissions
    2. the bound on what joins them: slack of the tightest SLO, or the best batch if they are none
    3. offline: the same three, within the bound, the tenant served least first

A sequence is given its blocks before it is planned. Who lacks one takes it from those who come
after it and are not planned yet: from offline sequences by the policy's rule, else from the last
one of its own kind, which may be itself.

Liveness: the first online sequence can take the blocks of all others. Without online sequences the
first offline one can, and the reserve binds nobody who runs alone; a preemption follows a token
that stays, so there are no more of them than tokens.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from libs.engine.scheduling.burst_reserve import BurstReserve
from libs.engine.scheduling.coserve import OfflineBudget
from libs.engine.scheduling.fair_shares import cost_of
from libs.engine.scheduling.options import SchedulerOptions
from libs.engine.scheduling.roster import Roster
from libs.engine.scheduling.step_budget import StepBudget
from libs.engine.scheduling.step_timing import StepTiming
from libs.engine.scheduling.tally import CoserveTally
from libs.engine.scheduling.tracked_sequence import TrackedSequence
from libs.engine.scheduling.victims import blocks_evictable, choose_victim, tokens_to_recompute
from libs.engine.steps import PlanEntry


@dataclass(slots=True, kw_only=True)
class ComposedStep:
    """The entries of a step and what is expected of it."""

    budget: StepBudget
    now_ns: int
    entries: list[PlanEntry] = field(default_factory=list)
    planned: dict[str, TrackedSequence] = field(default_factory=dict)
    """The sequences of the entries, in their order."""
    charges: dict[str, int] = field(default_factory=dict)
    """What tenants were charged for it."""
    slack_ns: int | None = None
    """What the online sequences in it leave, where that bounds the offline ones."""
    has_evicted: bool = False
    """Whether a sequence lost its blocks; then none of its kind is admitted in the same step."""
    has_preempted_online: bool = False

    @property
    def has_online_prompt(self) -> bool:
        """Whether it computes a prompt, or part of one, of somebody who does not give way."""
        return any(s.tokens_missing > 1 and not s.gives_way for s in self.planned.values())

    @property
    def has_online(self) -> bool:
        """Whether it serves anybody who does not give way."""
        return any(not sequence.gives_way for sequence in self.planned.values())


class StepPlanner:
    """Composes the steps of one engine by its policy."""

    def __init__(
        self,
        options: SchedulerOptions,
        *,
        roster: Roster,
        timing: StepTiming,
        tally: CoserveTally,
    ) -> None:
        self._options = options
        self._rules = options.coserve.rules
        self._roster = roster
        self._blocks = roster.blocks
        self._timing = timing
        self._tally = tally
        share = options.coserve.reserve_share_max if self._rules.has_reserve else 0.0
        self._reserve = BurstReserve(blocks_max=int(options.blocks_total * share))
        self._blocks_reserved = 0
        self._blocks_kept = 0
        """Of them, those that were free when offline work had its turn: nobody is evicted to fill a
        reserve that has grown, it fills as sequences end."""
        self.stored: Container[int] = frozenset()
        """Hashes of blocks that can be copied back."""

    @property
    def blocks_reserved_for_online(self) -> int:
        """Blocks that offline work leaves free, as of the last step."""
        return self._blocks_reserved

    def compose(self, *, now_ns: int) -> ComposedStep:
        """Choose the entries of the next step; it has none if nobody can advance."""
        budget = StepBudget(tokens=self._options.step_tokens, predict_ns=self._timing.predict_ns)
        step = ComposedStep(budget=budget, now_ns=now_ns)
        self._serve(self._roster.running_online, step)
        if not step.has_preempted_online:
            self._admit_online(step)
        # After the admissions, which are what it is made of.
        self._blocks_reserved = self._reserve.blocks(now_ns=now_ns)
        self._blocks_kept = min(self._blocks_reserved, self._blocks.pool.blocks_free)
        if self._rules.is_online_first and self._rules.admits_offline:
            self._bound_offline(step)
            self._serve(self._offline_in_order(), step)
            if not step.has_evicted:
                self._admit_offline(step)
        return step

    def can_make_room(self, sequence: TrackedSequence) -> bool:
        """Whether a waiting online sequence could be admitted if all that give way did."""
        roster, blocks = self._roster, self._blocks
        if len(roster.running_online) >= self._options.sequences_max:
            return False
        matched = blocks.acquire_prefix(sequence)
        tables = [other.block_ids for other in roster.running_offline]
        if not roster.running_online:
            tables += blocks.holds.committed_tables
        missing = blocks.pool.blocks_for(len(sequence.token_ids)) - len(matched)
        needed = missing + len(roster.running_online) - blocks_evictable(blocks.pool, tables)
        is_enough = blocks.pool.can_allocate(needed)
        blocks.pool.release(matched)
        return is_enough

    # ------------------------------------------------------------------ running sequences

    def _serve(self, sequences: Sequence[TrackedSequence], step: ComposedStep) -> None:
        decodes: list[TrackedSequence] = []
        prefills: list[TrackedSequence] = []
        for sequence in sequences:
            (decodes if sequence.tokens_missing == 1 else prefills).append(sequence)
        is_room_for_all = step.budget.fits_decodes(s.tokens_computed for s in decodes)
        for sequence in decodes:
            # A victim is never planned already, but it may come later in this very list.
            is_fitting = is_room_for_all or step.budget.fits_decodes((sequence.tokens_computed,))
            if is_fitting and sequence.is_running and self._grow(sequence, step):
                self._plan(sequence, 1, step)
        for sequence in prefills:
            if sequence.is_running:
                self._plan_prefill(sequence, step)

    def _plan_prefill(self, sequence: TrackedSequence, step: ComposedStep) -> None:
        tokens = step.budget.prefill_tokens(
            sequence.tokens_missing, tokens_before=sequence.tokens_computed
        )
        if tokens > 0:
            self._plan(sequence, tokens, step)

    def _grow(self, sequence: TrackedSequence, step: ComposedStep) -> bool:
        """Make room for the sequence's next token, by preemption if need be; False if it was
        itself the one to be preempted."""
        if self._blocks.has_room_for_next_token(sequence):
            return True
        while not self._blocks.pool.can_allocate(1 + self._blocks_kept_from(sequence)):
            if self._blocks.holds.give_up_committed():
                continue
            victim = self._victim_of(sequence, step)
            self._preempt(victim, step, is_for_online=not sequence.gives_way)
            if victim is sequence:
                return False
        self._blocks.grow(sequence)
        if not sequence.gives_way:
            self._reserve.note_taken(1, now_ns=step.now_ns)
        return True

    def _blocks_kept_from(self, sequence: TrackedSequence) -> int:
        is_bound = sequence.gives_way and self._roster.running_count > 1
        return self._blocks_kept if is_bound else 0

    def _victim_of(self, sequence: TrackedSequence, step: ComposedStep) -> TrackedSequence:
        candidates = [
            other
            for other in self._roster.running_offline
            if other is not sequence
            and other.sequence_id not in step.planned
            and (not sequence.gives_way or other.rank >= sequence.rank)
        ]
        victim = self._choose_victim(candidates)
        if victim is not None:
            return victim
        return sequence if sequence.gives_way else self._roster.running_online[-1]

    # ------------------------------------------------------------------ admission

    def _admit_online(self, step: ComposedStep) -> None:
        for sequence in self._roster.waiting.online():
            if step.budget.tokens_left <= 0 or not self._make_room(sequence, step):
                break
            self._reserve.note_taken(
                len(sequence.block_ids) - sequence.blocks_published, now_ns=step.now_ns
            )
            self._start(sequence, step)

    def _make_room(self, sequence: TrackedSequence, step: ComposedStep) -> bool:
        """Give a waiting online sequence its blocks; if they lack, those of offline ones, provided
        that all of them would suffice."""
        if self._admit(sequence, blocks_spare=len(self._roster.running_online)):
            return True
        if not self._rules.makes_room or not self.can_make_room(sequence):
            return False
        while not self._admit(sequence, blocks_spare=len(self._roster.running_online)):
            victim = self._choose_victim(self._roster.running_offline)
            if victim is None:
                return False
            self._preempt(victim, step, is_for_online=True)
        return True

    def _admit_offline(self, step: ComposedStep) -> None:
        roster = self._roster
        while (sequence := roster.waiting.next_offline()) is not None:
            if step.budget.prefill_tokens(1, tokens_before=0) == 0:
                break
            running = roster.running_count
            spare = running + self._blocks_reserved if running else 0
            if not self._admit(sequence, blocks_spare=spare):
                break
            self._start(sequence, step)

    def _admit(self, sequence: TrackedSequence, *, blocks_spare: int) -> bool:
        """Give a waiting sequence all the blocks that it needs now, if there is a place for it.

        One more block per running sequence stays free, so that an admission is not followed by
        a preemption at the next block boundary.
        """
        if self._roster.running_count >= self._options.sequences_max:
            return False
        while not self._blocks.admit(sequence, blocks_spare=blocks_spare):
            if self._roster.running_count or not self._blocks.holds.give_up_committed():
                return False
        return True

    def _start(self, sequence: TrackedSequence, step: ComposedStep) -> None:
        self._roster.start(sequence)
        self._plan_prefill(sequence, step)

    # ------------------------------------------------------------------ offline work

    def _bound_offline(self, step: ComposedStep) -> None:
        """Set what the offline part of the step may take."""
        if self._rules.budget is not OfflineBudget.SLACK:
            return
        timing, offline = self._timing, self._roster.running_offline
        if not step.entries:
            step.budget.bound(
                time_ns_max=timing.offline_step_ns_max,
                tokens_max=max(timing.offline_step_tokens, len(offline)),
                tokens_floor=self._options.block_tokens,
            )
            return
        tokens_by_sequence = zip(
            step.planned.values(), (len(entry.token_ids) for entry in step.entries), strict=True
        )
        step.slack_ns = timing.slack_ns(tokens_by_sequence, now_ns=step.now_ns)
        time_ns_max = timing.budget_ns(step.slack_ns)
        if self._rules.bounds_mixed_steps:
            online_ns = timing.predict_ns(step.budget.work)
            # Who waits for a prompt was held when it came, and so was who waits behind it.
            hold_ns = 0 if step.has_online_prompt else timing.hold_ns
            time_ns_max = min(time_ns_max, online_ns + hold_ns)
        step.budget.bound(time_ns_max=time_ns_max)

    def _offline_in_order(self) -> list[TrackedSequence]:
        shares, offline = self._roster.shares, self._roster.running_offline
        if not self._rules.is_fair:
            return list(offline)
        return sorted(offline, key=lambda s: (s.rank, shares.served(s.request.tenant), s.arrival))

    def _choose_victim(self, candidates: Sequence[TrackedSequence]) -> TrackedSequence | None:
        rule = self._rules.victim_rule
        return choose_victim(self._blocks, candidates, rule=rule, stored=self.stored)

    def _preempt(self, victim: TrackedSequence, step: ComposedStep, *, is_for_online: bool) -> None:
        tally = self._tally
        if not victim.gives_way or not is_for_online:
            tally.preemptions += 1
        elif tokens_to_recompute(self._blocks, victim, self.stored) > 0:
            tally.evictions_recomputed += 1
        else:
            tally.evictions_stored += 1
        step.has_evicted |= victim.gives_way
        step.has_preempted_online |= not victim.gives_way
        self._roster.preempt(victim)

    # ------------------------------------------------------------------ entries

    def _plan(self, sequence: TrackedSequence, tokens: int, step: ComposedStep) -> None:
        start, missing = sequence.tokens_computed, sequence.tokens_missing
        if missing == 1:
            step.budget.take_decode(tokens_before=start)
        else:
            step.budget.take_prefill(tokens, tokens_before=start)
        entry = PlanEntry(
            sequence_id=sequence.sequence_id,
            token_ids=tuple(sequence.token_ids[start : start + tokens]),
            start_position=start,
            block_table=tuple(sequence.block_ids[: self._blocks.pool.blocks_for(start + tokens)]),
            is_sampling=tokens == missing,
            output_index=sequence.output_index,
            tokens_scored=sequence.tokens_scored(tokens),
        )
        step.planned[entry.sequence_id] = sequence
        step.entries.append(entry)
        if self._rules.is_fair and sequence.gives_way:
            self._charge(sequence, start + tokens, step)

    def _charge(self, sequence: TrackedSequence, end: int, step: ComposedStep) -> None:
        request = sequence.request
        cost = cost_of(
            prompt_tokens=request.tokens_known, first=sequence.tokens_computed_ever, end=end
        )
        step.charges[request.tenant] = step.charges.get(request.tenant, 0) + cost
        self._roster.shares.charge(request.tenant, cost)

"""The scheduler under random arrivals, aborts and steps, against a model of the KV memory.

The model computes nothing but remembers, for every position of every block, the prefix that was
written there. A plan that reads a position finds the right prefix or the test fails; so block
sharing, eviction and preemption are judged by what a real runner would read.
"""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions, refuse_reason
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.steps import PlanEntry, SampledToken, StepPlan, StepResult, TokenEmitted

EOS = 7
VOCABULARY = 12


def next_token(token_ids: tuple[int, ...]) -> int:
    """A stand-in for the model: any fixed function of all tokens so far."""
    total = 17
    for token_id in token_ids:
        total = (total * 31 + token_id + 1) % 1_000_003
    return total % VOCABULARY


def undisturbed(request: SequenceRequest, *, context_tokens_max: int) -> list[int]:
    """The tokens of a request that runs alone and is never interrupted."""
    tokens = [*request.prompt_token_ids, *request.generated_token_ids]
    while True:
        tokens.append(next_token(tuple(tokens)))
        generated = len(tokens) - len(request.prompt_token_ids)
        if tokens[-1] == EOS or generated >= request.stop.max_tokens:
            break
        if len(tokens) >= context_tokens_max:
            break
    return tokens[len(request.prompt_token_ids) + len(request.generated_token_ids) :]


@dataclass
class Fleet:
    """One scheduler with the model of its KV memory and a record of what came out."""

    scheduler: Scheduler
    written: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    requests: dict[str, SequenceRequest] = field(default_factory=dict)
    emitted: dict[str, list[TokenEmitted]] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    opened: set[str] = field(default_factory=set)

    def add(self, request: SequenceRequest) -> None:
        self.scheduler.add(request, now_ns=0)
        self.requests[request.sequence_id] = request
        self.tokens[request.sequence_id] = [
            *request.prompt_token_ids,
            *request.generated_token_ids,
        ]
        self.emitted[request.sequence_id] = []

    def run(self, plan: StepPlan) -> StepResult:
        assert sum(len(e.token_ids) for e in plan.entries) <= (
            self.scheduler.options.step_tokens_max
        )
        for sequence_id in plan.closed:
            self.opened.remove(sequence_id)
        for request in plan.opened:
            assert request.sequence_id not in self.opened
            self.opened.add(request.sequence_id)
        sequence_ids = [entry.sequence_id for entry in plan.entries]
        assert len(set(sequence_ids)) == len(sequence_ids)
        assert set(sequence_ids) <= self.opened
        for entry in plan.entries:
            assert entry.token_ids
            self._write(entry)
        for entry in plan.entries:
            self._read(entry)
        return StepResult(
            step_id=plan.step_id,
            sampled=tuple(self._sample(e) for e in plan.entries if e.is_sampling),
        )

    def take(self, result: StepResult) -> None:
        for token in self.scheduler.account(result, now_ns=0):
            assert token.sequence_id not in self.aborted
            self.tokens[token.sequence_id].append(token.token_id)
            self.emitted[token.sequence_id].append(token)

    def _key(self, entry: PlanEntry, position: int) -> tuple[int, int]:
        size = self.scheduler.options.block_tokens
        return entry.block_table[position // size], position % size

    def _prefix(self, entry: PlanEntry, position: int) -> tuple[int, ...]:
        salt = ord(self.requests[entry.sequence_id].cache_salt or "\0")
        return (salt, *self.tokens[entry.sequence_id][: position + 1])

    def _write(self, entry: PlanEntry) -> None:
        end = entry.start_position + len(entry.token_ids)
        tokens = self.tokens[entry.sequence_id]
        assert tuple(tokens[entry.start_position : end]) == entry.token_ids
        assert entry.is_sampling == (end == len(tokens))
        assert len(entry.block_table) == -(-end // self.scheduler.options.block_tokens)
        for position in range(entry.start_position, end):
            self.written[self._key(entry, position)] = self._prefix(entry, position)

    def _read(self, entry: PlanEntry) -> None:
        for position in range(entry.start_position + len(entry.token_ids)):
            assert self.written[self._key(entry, position)] == self._prefix(entry, position)

    def _sample(self, entry: PlanEntry) -> SampledToken:
        tokens = self.tokens[entry.sequence_id]
        prompt_tokens = len(self.requests[entry.sequence_id].prompt_token_ids)
        assert entry.output_index == len(tokens) - prompt_tokens
        return SampledToken(
            sequence_id=entry.sequence_id,
            token_id=next_token(tuple(tokens)),
            text="text",
            text_if_last="last",
            is_stop_matched=False,
        )


@st.composite
def scheduler_options(draw: st.DrawFn) -> SchedulerOptions:
    block_tokens = draw(st.integers(1, 5))
    blocks_total = draw(st.integers(2, 14))
    sequences_max = draw(st.integers(1, 5))
    return SchedulerOptions(
        step_tokens_max=sequences_max + draw(st.integers(0, 8)),
        sequences_max=sequences_max,
        block_tokens=block_tokens,
        blocks_total=blocks_total,
        context_tokens_max=max(2, block_tokens * blocks_total - draw(st.integers(0, 3))),
        eos_token_ids=frozenset({EOS}),
        enable_prefix_cache=draw(st.booleans()),
    )


@st.composite
def requests(draw: st.DrawFn, *, sequence_id: str) -> SequenceRequest:
    # Few distinct tokens and often one common head, so that prefixes are really shared.
    head = draw(st.sampled_from([(), (1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 2, 2, 2, 2)]))
    # Whole prompts come twice, too, also of whole blocks.
    again = st.sampled_from([[2], [1, 1], [2, 2, 2, 2], [2, 2, 2, 2, 0, 0]])
    tail = draw(st.one_of(again, st.lists(st.integers(0, 2), min_size=1, max_size=12)))
    return SequenceRequest(
        sequence_id=sequence_id,
        prompt_token_ids=(*head, *tail),
        generated_token_ids=tuple(draw(st.lists(st.integers(0, 2), max_size=4))),
        sampling=SamplingOptions(),
        stop=StopOptions(max_tokens=draw(st.integers(1, 25))),
        priority=draw(st.sampled_from([0, 0, 0, 1])),
        cache_salt=draw(st.sampled_from(["", "a"])),
    )


def is_admissible(request: SequenceRequest, options: SchedulerOptions) -> bool:
    return (
        refuse_reason(
            request,
            context_tokens_max=options.context_tokens_max,
            vocabulary_size=VOCABULARY,
            blocks_total=options.blocks_total,
            block_tokens=options.block_tokens,
        )
        is None
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_admitted_sequence_gets_the_tokens_of_an_undisturbed_run(data: st.DataObject) -> None:
    options = data.draw(scheduler_options())
    fleet = Fleet(Scheduler(options))
    for number in range(data.draw(st.integers(1, 25))):
        event = data.draw(st.sampled_from(["add", "add", "step", "step", "abort", "abort in step"]))
        if event == "add":
            request = data.draw(requests(sequence_id=f"s{number}"))
            if is_admissible(request, options):
                fleet.add(request)
        elif event == "abort" and fleet.requests:
            abort(fleet, data.draw(st.sampled_from(sorted(fleet.requests))))
        elif (plan := fleet.scheduler.schedule(now_ns=0)) is not None:
            if event == "abort in step":
                abort(fleet, data.draw(st.sampled_from(sorted(fleet.requests))))
                fleet.scheduler.check_invariants()
            fleet.take(fleet.run(plan))
        fleet.scheduler.check_invariants()
    run_until_idle(fleet)
    check_outcomes(fleet, options)


def abort(fleet: Fleet, sequence_id: str) -> None:
    was_known = fleet.scheduler.knows(sequence_id) and sequence_id not in fleet.aborted
    assert fleet.scheduler.abort(sequence_id) == was_known
    if was_known:
        fleet.aborted.add(sequence_id)


def run_until_idle(fleet: Fleet) -> None:
    """Liveness: with no further arrival, everything admitted ends within a bound of steps."""
    steps_left = 4_000
    while (plan := fleet.scheduler.schedule(now_ns=0)) is not None:
        fleet.take(fleet.run(plan))
        fleet.scheduler.check_invariants()
        steps_left -= 1
        assert steps_left > 0, "the scheduler makes no progress"


def check_outcomes(fleet: Fleet, options: SchedulerOptions) -> None:
    for sequence_id, request in fleet.requests.items():
        emitted = fleet.emitted[sequence_id]
        first = len(request.generated_token_ids)
        assert [token.index for token in emitted] == list(range(first, first + len(emitted)))
        expected = undisturbed(request, context_tokens_max=options.context_tokens_max)
        got = [token.token_id for token in emitted]
        if sequence_id in fleet.aborted:
            assert got == expected[: len(got)]
            assert all(token.finish_reason is None for token in emitted)
            continue
        assert got == expected
        assert [token.text for token in emitted] == ["text"] * (len(got) - 1) + ["last"]
        assert [t.finish_reason for t in emitted[:-1]] == [None] * (len(got) - 1)
        assert emitted[-1].finish_reason == ("stop" if got[-1] == EOS else "length")
    load = fleet.scheduler.load()
    assert load.blocks_free == load.blocks_total
    assert (load.sequences_running, load.sequences_waiting, load.tokens_waiting) == (0, 0, 0)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_equal_calls_give_equal_plans(data: st.DataObject) -> None:
    options = data.draw(scheduler_options())
    drawn = [data.draw(requests(sequence_id=f"s{number}")) for number in range(6)]
    fleets = [Fleet(Scheduler(options)), Fleet(Scheduler(options))]
    for fleet in fleets:
        for request in drawn:
            if is_admissible(request, options):
                fleet.add(request)
    plans = [fleet.scheduler.schedule(now_ns=0) for fleet in fleets]
    while plans[0] is not None or plans[1] is not None:
        assert plans[0] == plans[1]
        for fleet, plan in zip(fleets, plans, strict=True):
            assert plan is not None
            fleet.take(fleet.run(plan))
        plans = [fleet.scheduler.schedule(now_ns=0) for fleet in fleets]

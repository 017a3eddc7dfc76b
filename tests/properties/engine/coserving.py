"""An engine without a model that serves both tides, under a clock that the test moves."""

from dataclasses import dataclass, field

from hypothesis import strategies as st

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions, refuse_reason
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from libs.engine.simulated_runner import SimulatedRunner, simulated_tokens
from libs.engine.steps import StepPlan, StepResult, TokenEmitted
from libs.kernel.units import NS_PER_MS
from libs.policy.latency_model import LatencyModel, StepWork

VOCABULARY = 50
EOS = frozenset({0, 1})
TENANTS = ("", "shore", "harbour")
LATENCY = LatencyModel(
    step_ns=NS_PER_MS,
    row_ns=NS_PER_MS // 4,
    pair_prefilled_ns=1_000,
    token_attended_ns=2_000,
    sequence_ns=NS_PER_MS // 8,
)


@dataclass(kw_only=True)
class Engine:
    """A scheduler, a runner, and all that was asked and answered."""

    options: SchedulerOptions
    now_ns: int = 0
    requests: dict[str, SequenceRequest] = field(default_factory=dict)
    emitted: dict[str, list[TokenEmitted]] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    due_from_ns: dict[str, int] = field(default_factory=dict)
    """When each sequence came, or had its latest token."""

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.options)
        self.runner = SimulatedRunner(vocabulary_size=VOCABULARY, eos_token_ids=EOS)

    def add(self, request: SequenceRequest) -> None:
        if not is_servable(request, self.options):
            return
        self.scheduler.add(request, now_ns=self.now_ns)
        self.requests[request.sequence_id] = request
        self.emitted[request.sequence_id] = []
        self.due_from_ns[request.sequence_id] = self.now_ns

    def abort(self, sequence_id: str) -> None:
        if self.scheduler.abort(sequence_id):
            self.aborted.add(sequence_id)

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.schedule(now_ns=self.now_ns)
        self.scheduler.check_invariants()
        return plan

    def finish(self, plan: StepPlan, *, slowness: float = 1.0) -> StepResult:
        """Run a step to its end, or to its yield if it was asked for."""
        result = self.runner.run(plan)
        self.now_ns += round(slowness * LATENCY.predict_ns(work_of(plan)))
        for token in self.scheduler.account(result, now_ns=self.now_ns):
            assert token.sequence_id not in self.aborted
            self.emitted[token.sequence_id].append(token)
            self.due_from_ns[token.sequence_id] = self.now_ns
        self.scheduler.check_invariants()
        return result

    def step(self) -> StepPlan | None:
        plan = self.plan()
        if plan is not None:
            self.finish(plan)
        return plan

    def run_until_idle(self, *, steps_max: int = 5_000) -> None:
        """Liveness: with no further arrival all that may run ends within a bound of steps."""
        for sequence_id in sorted(self.held):
            self.scheduler.let_go(sequence_id)
        for _ in range(steps_max):
            if self.step() is None:
                return
        raise AssertionError("the scheduler makes no progress")

    def check_answers(self, *, is_offline_served: bool = True) -> None:
        """Every sequence has ended once, with the tokens of a run that nothing disturbed."""
        for sequence_id, request in self.requests.items():
            emitted = self.emitted[sequence_id]
            first = len(request.generated_token_ids)
            assert [token.index for token in emitted] == list(range(first, first + len(emitted)))
            expected = simulated_tokens(
                request,
                vocabulary_size=VOCABULARY,
                eos_token_ids=EOS,
                context_tokens_max=self.options.context_tokens_max,
            )[first:]
            got = tuple(token.token_id for token in emitted)
            if sequence_id in self.aborted:
                assert got == expected[: len(got)]
            elif request.is_offline and not is_offline_served:
                assert got == ()
            else:
                assert got == expected
                assert [t.finish_reason is not None for t in emitted].count(True) == 1
                assert not self.scheduler.knows(sequence_id)


def work_of(plan: StepPlan) -> StepWork:
    work = StepWork()
    for entry in plan.entries:
        before, tokens = entry.start_position, len(entry.token_ids)
        if tokens == 1 and entry.is_sampling:
            work = work.with_decode(tokens_before=before)
        else:
            work = work.with_prefill(tokens=tokens, tokens_before=before)
    return work


def is_servable(request: SequenceRequest, options: SchedulerOptions) -> bool:
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


@st.composite
def engines(
    draw: st.DrawFn,
    *,
    policies: tuple[Coserve, ...] = tuple(Coserve),
    has_prefix_cache: bool | None = None,
) -> Engine:
    block_tokens = draw(st.integers(1, 5))
    blocks_total = draw(st.integers(3, 40))
    sequences_max = draw(st.integers(1, 6))
    has_cache = draw(st.booleans()) if has_prefix_cache is None else has_prefix_cache
    coserve = CoserveOptions(
        policy=draw(st.sampled_from(policies)),
        ttft_slo_ns=draw(st.sampled_from((3, 10, 40))) * NS_PER_MS,
        tbt_slo_ns=draw(st.sampled_from((1, 4, 15))) * NS_PER_MS,
        latency=LATENCY,
        chunk_tokens=draw(st.integers(1, 12)),
    )
    return Engine(
        options=SchedulerOptions(
            step_tokens_max=sequences_max + draw(st.integers(0, 24)),
            sequences_max=sequences_max,
            block_tokens=block_tokens,
            blocks_total=blocks_total,
            context_tokens_max=max(2, block_tokens * blocks_total),
            eos_token_ids=EOS,
            enable_prefix_cache=has_cache,
            layers=draw(st.sampled_from((None, 1, 4, 24))),
            coserve=coserve,
        )
    )


@st.composite
def requests(
    draw: st.DrawFn, *, sequence_id: str, priorities: tuple[int, ...] = (0, 0, 1, -10, -10, -3)
) -> SequenceRequest:
    head = draw(st.sampled_from([(), (1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 2, 2, 2, 2)]))
    tail = draw(st.lists(st.integers(0, 2), min_size=1, max_size=14))
    return SequenceRequest(
        sequence_id=sequence_id,
        prompt_token_ids=(*head, *tail),
        sampling=SamplingOptions(),
        stop=StopOptions(max_tokens=draw(st.integers(1, 20)), ignore_eos=draw(st.booleans())),
        priority=draw(st.sampled_from(priorities)),
        tenant=draw(st.sampled_from(TENANTS)),
    )

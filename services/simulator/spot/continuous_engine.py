"""The live scheduler on an engine of pure arithmetic: continuous batching, chunked prefill.

A step takes what `step_times` says. Beyond the largest measured batch, times go on along the last
line of the profile, which no measurement supports: the fleet's B bounds how far.

While nobody waits and every sequence decodes, steps are alike until the first of them ends: such a
stretch is one action of the world. `is_stepwise` makes every step an action, for comparison.
KV that came from elsewhere is imported as the live worker does it: as cached prefix blocks.
"""

from libs.engine.prefix_hashes import prefix_block_hashes
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.steps import SampledToken, StepPlan, StepResult
from libs.policy.model_profile import ModelProfile
from libs.policy.shapes import ReplicaShape
from libs.sim.world import World
from services.simulator.spot.engine import EngineOwner, EngineReport
from services.simulator.spot.options import BLOCK_TOKENS
from services.simulator.spot.step_times import PREFILL_CHUNKS, StepTimes
from services.simulator.spot.stretching_engine import StretchingEngine
from services.simulator.spot.work import SimRequest, Work

TOKEN_ID = 1
"""Of every token: what is said does not matter here. A salt keeps requests apart."""


class ContinuousEngine(StretchingEngine):
    """See ReplicaEngine."""

    def __init__(
        self, world: World, owner: EngineOwner, *, profile: ModelProfile, shape: ReplicaShape,
        sequences_max: int, step_tokens_max: int, context_tokens_max: int,
        prefill_chunks: int = PREFILL_CHUNKS, kv_blocks_max: int | None = None,
        is_stepwise: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(world, owner)
        self._times = StepTimes(profile, shape, prefill_chunks=prefill_chunks)
        self._is_stepwise = is_stepwise
        blocks_per_sequence = -(-context_tokens_max // BLOCK_TOKENS) + 1
        blocks = 2 * (sequences_max + 1) * blocks_per_sequence
        self._scheduler = Scheduler(
            SchedulerOptions(
                step_tokens_max=max(step_tokens_max, sequences_max),
                sequences_max=sequences_max,
                block_tokens=BLOCK_TOKENS,
                blocks_total=blocks if kv_blocks_max is None else min(blocks, kv_blocks_max),
                context_tokens_max=context_tokens_max + 1,
                eos_token_ids=frozenset(),
            )
        )
        self._works: dict[str, Work] = {}
        """All that the scheduler was told of."""
        self._samples: dict[str, SampledToken] = {}
        """What each of them samples, over and over."""
        self._decoding: set[str] = set()
        """Requests that gain one token in every step of this stretch; for membership only."""
        self._plan: StepPlan | None = None
        """Of the first step of the stretch."""

    # ------------------------------------------------------------------ from outside

    @property
    def requests_held(self) -> int:
        """See ReplicaEngine."""
        return len(self._works) + len(self._arriving)

    def report(self) -> EngineReport:
        """See ReplicaEngine."""
        if self._is_halted:
            return EngineReport()
        load = self._scheduler.load()
        arriving = sum(work.requests[0].kv_tokens - work.kv_tokens for work in self._arriving)
        return EngineReport(
            requests_running=load.sequences_running,
            requests_waiting=load.sequences_waiting + len(self._arriving),
            tokens_waiting=load.tokens_waiting + arriving,
            step_ns=self._step_ns if self._steps else 0,
        )

    # ------------------------------------------------------------------ steps

    def _held_known(self) -> list[Work]:
        if not self._is_halted:
            passed = self._steps_passed()
            for name, work in self._works.items():
                steps = passed if name in self._decoding else 0
                work.tokens_done = work.requests[0].tokens_done + steps
                work.kv_tokens = self._scheduler.tokens_computed(name) + steps
        return list(self._works.values())

    def _forget(self) -> None:
        if not self._is_halted:
            for name in self._works:
                self._scheduler.abort(name)
                self._scheduler.release_blocks(name)
        self._works.clear()
        self._samples.clear()

    def _next_stretch(self) -> tuple[int, int] | None:
        self._plan = self._scheduler.schedule(now_ns=self._world.now_ns)
        return None if self._plan is None else self._stretch_of(self._plan)

    def _stretch_of(self, plan: StepPlan) -> tuple[int, int]:
        """Return how many steps are like this one, and how long each takes."""
        decoding = [e for e in plan.entries if e.output_index and len(e.token_ids) == 1]
        tokens = sum(len(entry.token_ids) for entry in plan.entries) - len(decoding)
        duration_ns = self._times.step_ns(decodes=len(decoding), prompt_tokens=tokens)
        self._decoding = {entry.sequence_id for entry in decoding} if not tokens else set()
        if self._is_stepwise or tokens or len(decoding) < len(self._works):
            return 1, duration_ns
        requests = (self._works[entry.sequence_id].requests[0] for entry in decoding)
        return min(r.output_tokens - r.tokens_done for r in requests), duration_ns

    def _account(self, steps: int) -> None:
        """The first of them is planned already."""
        plan, self._plan = self._plan, None
        for number in range(1, steps + 1):
            assert plan is not None
            at_ns = self._began_at_ns + number * self._step_ns
            self._finish_step(plan, at_ns=at_ns)
            if number < steps:
                plan = self._scheduler.schedule(now_ns=at_ns)

    def _finish_step(self, plan: StepPlan, *, at_ns: int) -> None:
        sampled = tuple(self._samples[e.sequence_id] for e in plan.entries if e.is_sampling)
        result = StepResult(step_id=plan.step_id, sampled=sampled)
        for token in self._scheduler.account(result, now_ns=at_ns):
            request = self._works[token.sequence_id].requests[0]
            request.tokens_done = token.index + 1
            if request.first_token_at_ns is None:
                request.first_token_at_ns = at_ns
            if token.finish_reason is not None:
                request.finished_at_ns = at_ns
                del self._works[token.sequence_id]
                del self._samples[token.sequence_id]
                self._owner.request_finished(request)
        for opened in plan.opened:
            self._scheduler.release_blocks(opened.sequence_id)

    def _take_in(self) -> None:
        arriving, self._arriving = self._arriving, []
        for work in arriving:
            self._works[work.name] = work
            if work.kv_tokens:
                self._import(work.requests[0], tokens=work.kv_tokens)
            self._samples[work.name] = _sampled(work.name)
            self._scheduler.add(_sequence(work.requests[0]), now_ns=self._world.now_ns)

    def _import(self, request: SimRequest, *, tokens: int) -> None:
        """Let the scheduler find the KV that came with the work."""
        hashes = prefix_block_hashes(
            [TOKEN_ID] * tokens, block_tokens=BLOCK_TOKENS, salt=request.request_id
        )
        self._scheduler.reserve_imports(request.request_id, hashes)
        self._scheduler.commit_imports(request.request_id, hashes)


def _sequence(request: SimRequest) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=request.request_id,
        prompt_token_ids=(TOKEN_ID,) * request.prompt_tokens,
        generated_token_ids=(TOKEN_ID,) * request.tokens_done,
        sampling=SamplingOptions(),
        stop=StopOptions(max_tokens=request.output_tokens, ignore_eos=True),
        cache_salt=request.request_id,
    )


def _sampled(sequence_id: str) -> SampledToken:
    return SampledToken(
        sequence_id=sequence_id, token_id=TOKEN_ID, text="", text_if_last="", is_stop_matched=False
    )

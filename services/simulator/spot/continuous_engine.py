"""The live scheduler on an engine of pure arithmetic: continuous batching, chunked prefill.

A step takes what `step_times` says. Beyond the largest measured batch, times go on along the last
line of the profile, which no measurement supports: the fleet's B bounds how far.

    boundary --schedule--> one step, or a stretch of equal ones --account--> boundary
                                      ^-- add, stop: cut at the next boundary

While nobody waits and every sequence decodes, steps are alike until the first of them ends: such a
stretch is one action of the world. `is_stepwise` makes every step an action, for comparison.
KV that came from elsewhere is imported as the live worker does it: as cached prefix blocks.
"""

from libs.engine.prefix_hashes import prefix_block_hashes
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.steps import SampledToken, StepPlan, StepResult
from libs.kernel.core import require
from libs.policy.model_profile import ModelProfile
from libs.policy.shapes import ReplicaShape
from libs.sim.world import Action, World
from services.simulator.spot.engine import EngineOwner, EngineReport
from services.simulator.spot.options import BLOCK_TOKENS
from services.simulator.spot.step_times import PREFILL_CHUNKS, StepTimes
from services.simulator.spot.work import SimRequest, Work

TOKEN_ID = 1
"""Of every token: what is said does not matter here. A salt keeps requests apart."""


class ContinuousEngine:
    """See ReplicaEngine."""

    def __init__(
        self, world: World, owner: EngineOwner, *, profile: ModelProfile, shape: ReplicaShape,
        sequences_max: int, step_tokens_max: int, context_tokens_max: int,
        prefill_chunks: int = PREFILL_CHUNKS, kv_blocks_max: int | None = None,
        is_stepwise: bool = False,
    ) -> None:  # fmt: skip
        self._world = world
        self._owner = owner
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
        self._samples: dict[str, SampledToken] = {}
        """What each of them samples, over and over."""
        self._arriving: list[Work] = []
        """Not told to the scheduler yet: it still has to take the steps before they came."""
        self._decoding: set[str] = set()
        """Requests that gain one token in every step of this stretch; for membership only."""
        self._is_started = False
        self._is_halted = False
        self._on_still: Action | None = None
        self._plan: StepPlan | None = None
        self._steps = 0
        """Of the stretch under way."""
        self._step_ns = 1
        self._began_at_ns = 0
        self._stretch = 0

    # ------------------------------------------------------------------ from outside

    def start(self) -> None:
        """See ReplicaEngine."""
        self._is_started = True
        if self._plan is None:
            self._begin()

    def stop(self, on_still: Action) -> None:
        """See ReplicaEngine."""
        self._is_started = False
        if self._plan is None:
            on_still()
            return
        self._on_still = on_still
        self._cut()

    def halt(self) -> None:
        """See ReplicaEngine."""
        for work in self.held():
            work.requests[0].tokens_done = work.tokens_done
        self._is_started = False
        self._is_halted = True
        self._stretch += 1
        self._plan = None

    def add(self, work: Work) -> None:
        """See ReplicaEngine."""
        self._works[work.name] = work
        self._arriving.append(work)
        if self._plan is not None:
            self._cut()
            return
        self._take_in()
        if self._is_started:
            self._begin()

    def held(self) -> list[Work]:
        """See ReplicaEngine."""
        if not self._is_halted:
            passed = self._decodes_passed()
            arriving = {work.name for work in self._arriving}
            for name, work in self._works.items():
                if name in arriving:
                    continue
                steps = passed if name in self._decoding else 0
                work.tokens_done = work.requests[0].tokens_done + steps
                work.kv_tokens = self._scheduler.tokens_computed(name) + steps
        return list(self._works.values())

    def take(self) -> list[Work]:
        """See ReplicaEngine."""
        require(self._plan is None, "work is taken from an engine that computes")
        works = self.held()
        if not self._is_halted:
            for work in works:
                self._scheduler.abort(work.name)
                self._scheduler.release_blocks(work.name)
        self._works.clear()
        self._samples.clear()
        return works

    @property
    def requests_held(self) -> int:
        """See ReplicaEngine."""
        return len(self._works)

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
            step_ns=self._step_ns if self._plan is not None else 0,
        )

    @property
    def kv_tokens(self) -> int:
        """See ReplicaEngine."""
        return 0 if self._is_halted else sum(work.kv_tokens for work in self.held())

    # ------------------------------------------------------------------ steps

    def _begin(self) -> None:
        self._plan = self._scheduler.schedule(now_ns=self._world.now_ns)
        if self._plan is None:
            self._owner.engine_idle()
            return
        self._steps, self._step_ns = self._stretch_of(self._plan)
        self._began_at_ns = self._world.now_ns
        self._end_after(self._steps)

    def _end_after(self, steps: int) -> None:
        self._stretch += 1
        stretch = self._stretch

        def end() -> None:
            if self._stretch == stretch:
                self._end(steps)

        ends_at_ns = self._began_at_ns + steps * self._step_ns
        self._world.after(ends_at_ns - self._world.now_ns, end)

    def _end(self, steps: int) -> None:
        self._account(steps)
        self._take_in()
        if self._is_started:
            self._begin()
        elif self._on_still is not None:
            on_still, self._on_still = self._on_still, None
            on_still()

    def _cut(self) -> None:
        """End the stretch at the next boundary between two steps."""
        steps = max(1, -((self._began_at_ns - self._world.now_ns) // self._step_ns))
        if steps < self._steps:
            self._steps = steps
            self._end_after(steps)

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

    def _decodes_passed(self) -> int:
        """Steps of the stretch under way that are over by now."""
        if self._plan is None:
            return 0
        passed = (self._world.now_ns - self._began_at_ns) // self._step_ns
        return min(passed, self._steps - 1)

    def _account(self, steps: int) -> None:
        """Let the scheduler take so many steps, of which the first is planned already."""
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
        """Tell the scheduler of what has come since the last boundary."""
        arriving, self._arriving = self._arriving, []
        for work in arriving:
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

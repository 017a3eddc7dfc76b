"""Times steps of chosen shapes on a real engine, and fits the latency model to them.

Every shape is run once per round, in another order each time, so that a neighbour on the machine
disturbs all alike; what counts is the median over the rounds. The rounds go on until the time is
used up. The caller gives the clock and a runner that nobody else uses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from libs.engine.batch_run import PlanRunner
from libs.engine.scheduler import SchedulerOptions
from libs.engine.step_shapes import StepPlans, StepShape, held_out_shapes, shapes_to_fit
from libs.engine.steps import StepPlan
from libs.kernel.core import require
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from libs.policy.latency_fit import StepSample, fit_latency_model, mean_relative_error
from libs.policy.latency_model import LatencyModel

POOL_TOKENS_MAX: Final = 16_384
"""KV that steps read: more than any cache holds, and filled within seconds."""
FILLING_SHARE: Final = 5
"""One of so many parts of the time at most goes into filling the pool; a slow engine gets less."""
ROUNDS_MIN: Final = 3
"""Below, a median says nothing; run even if they take longer than was given."""
ROUNDS_MAX: Final = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingOptions:
    """How long to measure."""

    budget_ns: int = 90 * NS_PER_S
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """What was measured, and the model that was fitted to it."""

    model: LatencyModel
    error: float
    """Mean relative error against the medians of steps that the fit did not see."""
    fitted: tuple[StepSample, ...]
    held_out: tuple[StepSample, ...]
    rounds: int
    pool_tokens: int


def measure_step_times(
    runner: PlanRunner,
    *,
    bounds: SchedulerOptions,
    vocabulary_size: int,
    now_ns: Callable[[], int],
    tell: Callable[[str], None],
    options: TimingOptions | None = None,
) -> StepTimes:
    """Measure an engine that is otherwise idle, on the calling thread; `tell` hears of progress."""
    timing = _Timing(
        runner,
        bounds=bounds,
        plans=StepPlans(bounds, vocabulary_size=vocabulary_size, rng=_rng(options, "tokens")),
        now_ns=now_ns,
        tell=tell,
        options=options or TimingOptions(),
    )
    return timing.measure()


def _rng(options: TimingOptions | None, name: str) -> Rng:
    return Rng((options or TimingOptions()).seed).child(name)


class _Timing:
    """One measurement."""

    def __init__(
        self,
        runner: PlanRunner,
        *,
        bounds: SchedulerOptions,
        plans: StepPlans,
        now_ns: Callable[[], int],
        tell: Callable[[str], None],
        options: TimingOptions,
    ) -> None:
        self._runner = runner
        self._bounds = bounds
        self._plans = plans
        self._now_ns = now_ns
        self._tell = tell
        self._options = options
        self._started_at_ns = now_ns()

    def measure(self) -> StepTimes:
        pool_tokens = self._fill_pool()
        to_fit = shapes_to_fit(self._bounds, pool_tokens=pool_tokens)
        held_out = held_out_shapes(
            self._bounds, pool_tokens=pool_tokens, rng=_rng(self._options, "held out")
        )
        durations = self._run_rounds([*to_fit, *held_out], pool_tokens=pool_tokens)
        medians = [
            StepSample(work=shape.work, duration_ns=round(median(measured_ns)))
            for shape, measured_ns in zip([*to_fit, *held_out], durations, strict=True)
        ]
        fitted, judged = medians[: len(to_fit)], medians[len(to_fit) :]
        model = fit_latency_model(fitted)
        return StepTimes(
            model=model,
            error=mean_relative_error(model, judged),
            fitted=tuple(fitted),
            held_out=tuple(judged),
            rounds=len(durations[0]),
            pool_tokens=pool_tokens,
        )

    def _fill_pool(self) -> int:
        """Write as much KV as there is time for; return its tokens."""
        size = self._bounds.block_tokens
        wanted = min(POOL_TOKENS_MAX, self._bounds.blocks_total * size) // size * size
        filled = 0
        for shape, plan in self._plans.filling(pool_tokens=wanted):
            self._time(plan)
            filled += shape.chunk_tokens
            if self._elapsed_ns() * FILLING_SHARE > self._options.budget_ns:
                break
        require(filled > 0, "the engine has no KV blocks")
        self._tell(f"filled {filled} tokens of KV")
        return filled

    def _run_rounds(self, shapes: list[StepShape], *, pool_tokens: int) -> list[list[int]]:
        """Return the durations of each shape, round by round."""
        durations: list[list[int]] = [[] for _ in shapes]
        order = list(range(len(shapes)))
        rng = _rng(self._options, "order")
        round_ns = 0
        # The first round allocates and warms caches; it is not counted.
        for number in range(ROUNDS_MAX + 1):
            left_ns = self._options.budget_ns - self._elapsed_ns()
            if number > ROUNDS_MIN and left_ns < round_ns:
                break
            started_at_ns = self._now_ns()
            rng.shuffle(order)
            for index in order:
                plan = self._plans.step(shapes[index], pool_tokens=pool_tokens)
                duration_ns = self._time(plan)
                if number > 0:
                    durations[index].append(duration_ns)
            round_ns = self._now_ns() - started_at_ns
            if number > 0:
                self._tell(
                    f"round {number}: {len(shapes)} steps in {round_ns / NS_PER_S:.1f} s, "
                    f"{max(0, left_ns - round_ns) / NS_PER_S:.0f} s left"
                )
        return durations

    def _time(self, plan: StepPlan) -> int:
        started_at_ns = self._now_ns()
        self._runner.run(plan)
        return self._now_ns() - started_at_ns

    def _elapsed_ns(self) -> int:
        return self._now_ns() - self._started_at_ns

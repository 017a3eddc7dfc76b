"""What a policy does with a slice, by its own scheduler in virtual time; pure.

Steps take what a latency model says, times a stated scatter, and a step that is asked to yield ends
at its next safepoint. So policies can be compared without a machine that is quiet, and SLOs can be
set by what online requests alone would feel on this engine.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.coserve_load import LoadRequest
from benchmarks.coserve_rows import RequestTimes, SliceResult
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.simulated_runner import SimulatedRunner
from libs.engine.steps import StepPlan
from libs.kernel.rng import Rng
from libs.policy.latency_model import LatencyModel, StepWork

VOCABULARY: int = 16_000


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualEngine:
    """An engine of which only the times matter."""

    options: SchedulerOptions
    latency: LatencyModel
    offline_open: int
    """Offline sequences that are there at any time."""
    scatter: float = 0.0
    """Standard deviation of the logarithm of a step's time."""
    seed: int = 7


def run_virtual_slice(
    engine: VirtualEngine,
    *,
    online: Sequence[LoadRequest],
    offline: Iterator[LoadRequest] | None,
    duration_ns: int,
) -> SliceResult:
    """Serve a slice until its time is over and all its online requests have their answers."""
    return _VirtualSlice(engine, online=online, offline=offline).run(duration_ns)


@dataclass(slots=True, kw_only=True)
class _Step:
    plan: StepPlan
    ends_at_ns: int
    layer_ns: int


@dataclass(slots=True)
class _Backlog:
    requests: Iterator[LoadRequest] | None
    open: set[str] = field(default_factory=set)


class _VirtualSlice:
    def __init__(
        self,
        engine: VirtualEngine,
        *,
        online: Sequence[LoadRequest],
        offline: Iterator[LoadRequest] | None,
    ) -> None:
        self._engine = engine
        self._scheduler = Scheduler(engine.options)
        self._runner = SimulatedRunner(vocabulary_size=VOCABULARY, eos_token_ids=frozenset())
        self._rng = Rng(engine.seed).child("step times")
        self._arrivals = list(reversed(online))
        self._times = {r.request_id: RequestTimes(arrival_ns=r.arrival_ns) for r in online}
        self._unanswered = set(self._times)
        self._backlog = _Backlog(offline)
        self._now_ns = 0

    def run(self, duration_ns: int) -> SliceResult:
        while self._now_ns < duration_ns or self._unanswered:
            self._fill_backlog()
            self._add_arrivals(until_ns=self._now_ns)
            plan = self._scheduler.schedule(now_ns=self._now_ns)
            if plan is None:
                upcoming = self._arrivals[-1].arrival_ns if self._arrivals else duration_ns
                self._now_ns = max(self._now_ns, upcoming)
            else:
                self._step(plan)
        return SliceResult(
            requests=tuple(self._times.values()),
            tally=replace(self._scheduler.tally),
            duration_ns=self._now_ns,
        )

    def _step(self, plan: StepPlan) -> None:
        engine = self._engine
        duration_ns = engine.latency.predict_ns(_work_of(plan))
        duration_ns = round(duration_ns * math.exp(engine.scatter * self._rng.gauss(0.0, 1.0)))
        step = _Step(
            plan=plan,
            ends_at_ns=self._now_ns + duration_ns,
            layer_ns=duration_ns // (engine.options.layers or 1),
        )
        self._add_arrivals_during(step, began_at_ns=self._now_ns)
        self._now_ns = step.ends_at_ns
        result = self._runner.run(plan)
        for token in self._scheduler.account(result, now_ns=self._now_ns):
            times = self._times.get(token.sequence_id)
            if times is not None:
                times.token_at_ns.append(self._now_ns)
            if token.finish_reason is not None:
                self._unanswered.discard(token.sequence_id)
                self._backlog.open.discard(token.sequence_id)

    def _add_arrivals_during(self, step: _Step, *, began_at_ns: int) -> None:
        while self._arrivals and self._arrivals[-1].arrival_ns < step.ends_at_ns:
            at_ns = self._arrivals[-1].arrival_ns
            self._add_arrivals(until_ns=at_ns)
            step_id = self._scheduler.step_to_yield(now_ns=at_ns)
            if step_id is None:
                continue
            spacing = step.plan.layers_between_safepoints
            assert spacing is not None
            group_ns = max(1, step.layer_ns * spacing)
            stops_at_ns = began_at_ns + ((at_ns - began_at_ns) // group_ns + 1) * group_ns
            if stops_at_ns < step.ends_at_ns:
                step.ends_at_ns = stops_at_ns
                self._runner.request_yield(step_id)

    def _add_arrivals(self, *, until_ns: int) -> None:
        while self._arrivals and self._arrivals[-1].arrival_ns <= until_ns:
            request = self._arrivals.pop()
            self._scheduler.add(_sequence(request, priority=0), now_ns=request.arrival_ns)

    def _fill_backlog(self) -> None:
        backlog = self._backlog
        while backlog.requests is not None and len(backlog.open) < self._engine.offline_open:
            request = next(backlog.requests)
            backlog.open.add(request.request_id)
            self._scheduler.add(_sequence(request, priority=-1), now_ns=self._now_ns)


def _sequence(request: LoadRequest, *, priority: int) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=request.request_id,
        prompt_token_ids=request.prompt,
        priority=priority,
        sampling=SamplingOptions(temperature=0.0),
        stop=StopOptions(max_tokens=request.output_tokens, ignore_eos=True),
    )


def _work_of(plan: StepPlan) -> StepWork:
    work = StepWork()
    for entry in plan.entries:
        tokens = len(entry.token_ids)
        if tokens == 1:
            work = work.with_decode(tokens_before=entry.start_position)
        else:
            work = work.with_prefill(tokens=tokens, tokens_before=entry.start_position)
    return work

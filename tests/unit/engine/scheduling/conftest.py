"""An engine under a clock that the test moves; a step takes what its latency model says."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from libs.engine.simulated_runner import SimulatedRunner
from libs.engine.steps import StepPlan
from libs.kernel.units import NS_PER_MS
from libs.policy.latency_model import LatencyModel

ONE_MS_PER_TOKEN = LatencyModel(
    step_ns=0, row_ns=NS_PER_MS, pair_prefilled_ns=0, token_attended_ns=0, sequence_ns=0
)


class Engine:
    """A scheduler whose plans are run; times are in milliseconds, one per token."""

    def __init__(self, *, policy: Coserve = Coserve.TIDESERVE, **changes: Any) -> None:
        coserve = CoserveOptions(
            policy=policy,
            latency=ONE_MS_PER_TOKEN,
            ttft_slo_ns=changes.pop("ttft_slo_ms", 160) * NS_PER_MS,
            tbt_slo_ns=changes.pop("tbt_slo_ms", 24) * NS_PER_MS,
            chunk_tokens=changes.pop("chunk_tokens", 8),
            reserve_share_max=changes.pop("reserve_share_max", 0.0),
        )
        options: dict[str, Any] = {
            "step_tokens_max": 64,
            "sequences_max": 8,
            "block_tokens": 4,
            "blocks_total": 64,
            "context_tokens_max": 200,
            "eos_token_ids": frozenset(),
            "enable_prefix_cache": False,
            "layers": 16,
            "coserve": coserve,
        }
        self.scheduler = Scheduler(SchedulerOptions(**(options | changes)))
        self.runner = SimulatedRunner(vocabulary_size=1000, eos_token_ids=frozenset())
        self.now_ms = 0

    @property
    def now_ns(self) -> int:
        return self.now_ms * NS_PER_MS

    def add(self, name: str, *, tokens: int = 4, offline: bool = False, **changes: Any) -> None:
        """Queue a sequence with a prompt of its own."""
        max_tokens = changes.pop("max_tokens", 50)
        prompt = changes.pop("prompt", None) or tuple(
            1 + (sum(name.encode()) * 31 + index * 7) % 900 for index in range(tokens)
        )
        request = SequenceRequest(
            sequence_id=name,
            prompt_token_ids=prompt,
            sampling=SamplingOptions(),
            stop=StopOptions(max_tokens=max_tokens, ignore_eos=True),
            priority=changes.pop("priority", -10 if offline else 0),
            **changes,
        )
        self.scheduler.add(request, now_ns=self.now_ns)

    def plan(self) -> StepPlan:
        plan = self.scheduler.schedule(now_ns=self.now_ns)
        self.scheduler.check_invariants()
        assert plan is not None
        return plan

    def finish(self, plan: StepPlan) -> None:
        result = self.runner.run(plan)
        self.now_ms += sum(len(entry.token_ids) for entry in plan.entries)
        self.scheduler.account(result, now_ns=self.now_ns)
        self.scheduler.check_invariants()

    def run_until_idle(self) -> None:
        """Run until nothing more can be planned."""
        for _ in range(1_000):
            plan = self.scheduler.schedule(now_ns=self.now_ns)
            if plan is None:
                return
            self.finish(plan)
        raise AssertionError("the scheduler makes no progress")

    def step(self, times: int = 1) -> dict[str, int]:
        """Run steps; return how many tokens of whom the last one computed."""
        shares: dict[str, int] = {}
        for _ in range(times):
            plan = self.plan()
            shares = {entry.sequence_id: len(entry.token_ids) for entry in plan.entries}
            self.finish(plan)
        return shares


@pytest.fixture
def an_engine() -> Callable[..., Engine]:
    """Build an engine; keyword arguments change its options."""
    return Engine

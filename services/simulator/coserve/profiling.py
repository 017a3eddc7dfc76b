"""What the live profiler finds out about a simulated device."""

from libs.engine.scheduler import SchedulerOptions
from libs.engine.step_times import StepTimes, TimingOptions, measure_step_times
from libs.engine.steps import StepPlan, StepResult
from libs.kernel.rng import Rng
from services.simulator.coserve.device import Device


def profile_device(
    device: Device, *, engine: SchedulerOptions, vocabulary_size: int, seed: int
) -> StepTimes:
    """Measure it as `tideserve profile` would; the scheduler then knows no more than a live one."""
    runner = _TimedRunner(device, noise=Rng(seed).child("profiled steps"))
    return measure_step_times(
        runner,
        bounds=engine,
        vocabulary_size=vocabulary_size,
        now_ns=lambda: runner.now_ns,
        tell=lambda _: None,
        options=TimingOptions(seed=seed),
    )


class _TimedRunner:
    """Lets each plan take its time, and brings forth nothing."""

    def __init__(self, device: Device, *, noise: Rng) -> None:
        self.now_ns = 0
        self._device = device
        self._noise = noise

    def run(self, plan: StepPlan) -> StepResult:
        """See PlanRunner."""
        self.now_ns += self._device.duration_ns(plan, noise=self._noise)
        return StepResult(step_id=plan.step_id, sampled=())

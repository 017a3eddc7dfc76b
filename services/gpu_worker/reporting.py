"""The worker's heartbeat: its whole state, counted and averaged."""

from libs.contracts.reports import PREFIX_HASHES_MAX, WorkerReport
from libs.engine.scheduler import Scheduler
from libs.kernel.units import milliseconds
from services.gpu_worker.options import WorkerOptions

STEP_WEIGHT = 0.2
"""Share of the newest step in the recent step time: about the last ten steps count."""


class Reporting:
    """Builds reports; each has the next beat."""

    def __init__(self, options: WorkerOptions, scheduler: Scheduler) -> None:
        self._options = options
        self._scheduler = scheduler
        self._beat = 0
        self._steps = 0
        self._tokens_generated = 0
        self._step_ms_recent = 0.0
        self.latest: WorkerReport | None = None

    def step_finished(self, *, tokens: int, duration_ns: int) -> None:
        """Count one step."""
        duration_ms = milliseconds(duration_ns)
        weight = STEP_WEIGHT if self._steps else 1.0
        self._step_ms_recent += weight * (duration_ms - self._step_ms_recent)
        self._steps += 1
        self._tokens_generated += tokens

    def next_report(self, *, is_draining: bool) -> WorkerReport:
        """Return the state of now under the next beat."""
        load = self._scheduler.load()
        beat, self._beat = self._beat, self._beat + 1
        self.latest = WorkerReport(
            worker_id=self._options.worker_id,
            beat=beat,
            alias=self._options.alias,
            process_id=self._options.process_id,
            is_draining=is_draining,
            context_tokens_max=self._options.engine.context_tokens_max,
            vocabulary_size=self._options.vocabulary_size,
            block_tokens=self._options.engine.block_tokens,
            blocks_total=load.blocks_total,
            blocks_free=load.blocks_free,
            sessions_running=load.sequences_running,
            sessions_waiting=load.sequences_waiting,
            tokens_waiting=load.tokens_waiting,
            tokens_generated=self._tokens_generated,
            steps=self._steps,
            step_ms_recent=self._step_ms_recent,
            prefix_hashes=self._scheduler.prefix_hashes(PREFIX_HASHES_MAX),
        )
        return self.latest

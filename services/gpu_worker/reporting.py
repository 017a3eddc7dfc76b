"""The worker's heartbeat: its whole state, counted and averaged."""

from collections.abc import Iterable
from dataclasses import asdict

from libs.contracts.reports import LINK_RATES_MAX, PREFIX_HASHES_MAX, LinkRate, WorkerReport
from libs.engine.scheduling.tally import CoserveTally
from libs.engine.steps import EngineLoad, OfflineBlocks
from libs.kernel.bounded import RecentMap
from libs.kernel.units import NS_PER_MS, milliseconds
from services.gpu_worker.options import WorkerOptions
from services.gpu_worker.positions import WorkerPosition
from services.gpu_worker.sessions import SessionTable

STEP_WEIGHT = 0.2
"""Share of the newest step in the recent step time: about the last ten steps count."""
IDLE = EngineLoad(
    blocks_total=0, blocks_free=0, sequences_running=0, sequences_waiting=0, tokens_waiting=0
)
"""The load of a worker that schedules nothing."""
NO_BLOCKS = OfflineBlocks(blocks_computed=0, blocks_stored=0)


class Reporting:
    """Builds reports; each has the next beat."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._beat = 0
        self._steps = 0
        self._tokens_generated = 0
        self._step_ms_recent = 0.0
        self.tokens_recomputed = 0
        """Of sessions that came from elsewhere with tokens, what no copy spared."""
        self.weights_bytes = options.weights_bytes
        self._link_rates: RecentMap[str, LinkRate] = RecentMap(entries_max=LINK_RATES_MAX)
        self.latest: WorkerReport | None = None

    @property
    def step_ns_recent(self) -> int:
        """What a step took lately; 0 before the first."""
        return round(self._step_ms_recent * NS_PER_MS)

    def note_link_rates(self, link_rates: Iterable[LinkRate]) -> None:
        """Take in what transfers have measured; of more peers than are reported, the latest."""
        for link_rate in link_rates:
            self._link_rates.put(link_rate.peer_worker_id, link_rate)

    def step_finished(self, *, tokens: int, duration_ns: int) -> None:
        """Count one step."""
        duration_ms = milliseconds(duration_ns)
        weight = STEP_WEIGHT if self._steps else 1.0
        self._step_ms_recent += weight * (duration_ms - self._step_ms_recent)
        self._steps += 1
        self._tokens_generated += tokens

    def next_report(
        self,
        *,
        position: WorkerPosition | None,
        sessions: SessionTable,
        tally: CoserveTally,
        is_draining: bool,
        grace_left_ns: int | None,
    ) -> WorkerReport:
        """Return the state of now under the next beat."""
        options = self._options
        scheduler = None if position is None else position.scheduler
        load = IDLE if scheduler is None else scheduler.load()
        offline = NO_BLOCKS if scheduler is None else scheduler.offline_blocks()
        beat, self._beat = self._beat, self._beat + 1
        self.latest = WorkerReport(
            worker_id=options.worker_id,
            beat=beat,
            alias=options.alias,
            process_id=options.process_id,
            is_draining=is_draining,
            context_tokens_max=options.engine.context_tokens_max,
            vocabulary_size=options.vocabulary_size,
            block_tokens=options.engine.block_tokens,
            blocks_total=load.blocks_total,
            blocks_free=load.blocks_free,
            sessions_running=load.sequences_running,
            sessions_waiting=load.sequences_waiting,
            tokens_waiting=load.tokens_waiting,
            tokens_generated=self._tokens_generated,
            steps=self._steps,
            step_ms_recent=self._step_ms_recent,
            prefix_hashes=() if scheduler is None else scheduler.prefix_hashes(PREFIX_HASHES_MAX),
            node_id=options.node_id,
            zone=options.zone,
            market=options.market,
            is_planned=options.is_planned,
            is_serving=position is not None and position.is_serving,
            position=position.reported() if position is not None and options.is_planned else None,
            peer_address=options.peer_address,
            memory_bytes=options.memory_bytes,
            memory_rule=options.memory_rule,
            weights_bytes=self.weights_bytes,
            kv_tokens=_tokens_computed(sessions, load),
            grace_left_ms=None if grace_left_ns is None else grace_left_ns // NS_PER_MS,
            sessions_running_max=0 if scheduler is None else scheduler.options.sequences_max,
            tokens_recomputed=self.tokens_recomputed,
            link_rates=tuple(self._link_rates.values()),
            prefill_tokens_per_s=0 if scheduler is None else scheduler.timing.prefill_tokens_per_s,
            coserve=options.engine.coserve.policy.value,
            offline_running=load.offline_running,
            offline_waiting=load.offline_waiting,
            offline_tokens_waiting=load.offline_tokens_waiting,
            blocks_offline=offline.blocks_computed,
            blocks_offline_stored=offline.blocks_stored,
            blocks_reserved_for_online=load.blocks_reserved_for_online,
            is_profile_off=scheduler is not None and scheduler.timing.is_profile_off,
            prediction_error=0.0 if scheduler is None else scheduler.timing.error,
            **asdict(tally),
        )
        return self.latest


def _tokens_computed(sessions: SessionTable, load: EngineLoad) -> int:
    """Count the tokens with KV: all that are known, less those still to be computed."""
    tokens = sum(s.tokens_known for s in sessions if s.finish_reason is None)
    return max(0, tokens - load.tokens_waiting - load.sequences_running)

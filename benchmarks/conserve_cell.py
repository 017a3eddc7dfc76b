"""One cell of the comparison: a model and a load under every policy, in virtual time.

profile    the live profiler times steps of the simulated device
load       replayed at such a speed that online work alone keeps the engine busy 30 % of the time
SLOs       P99 of TTFT and of TBT under online-only: co-serving shall not be noticed
policies   the same requests, the same backlog, the same device for each
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from benchmarks.conserve_load import Bounds, ConserveLoad, offline_backlog, online_requests
from benchmarks.coserve_rows import CoserveRow, Slos, quantile, row_of
from benchmarks.coserve_simulated import slice_of
from libs.engine.scheduler import SchedulerOptions
from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from libs.engine.step_times import StepTimes
from libs.kernel.units import NS_PER_S
from libs.policy.latency_model import StepWork
from services.gpu_worker.checkpoint_options import CheckpointOptions, host_room
from services.simulator.coserve.device import Device
from services.simulator.coserve.h100 import DEVIATION, HOST_BYTES, LINK, H100Times, ServedModel
from services.simulator.coserve.profiling import profile_device
from services.simulator.coserve.requests import CoserveRequest
from services.simulator.coserve.run import CoserveOutcome, CoserveRunOptions, run_coserve

BLOCK_TOKENS: Final = 16
STEP_TOKENS_MAX: Final = 2_048
SEQUENCES_MAX: Final = 256
CHUNK_TOKENS: Final = 512
"""Of fixed-chunk: Sarathi's, and vLLM's before it was raised."""
OFFLINE_TOKENS_EACH: Final = 2_800
"""Of a typical offline sequence: so many of them fit, and a few more wait."""
OFFLINE_WAITING: Final = 16
SETTLE_NS: Final = 20 * NS_PER_S
"""Until the engine is full, and its sequences no longer all of one age."""
BUSY_SHARE: Final = 0.3
"""ConServe's motivation: an H100 serving 8B online is idle for more than 70 % of the time."""
BUSY_SHARE_ERROR_MAX: Final = 0.02
"""Relative."""
SPEEDS_TRIED_MAX: Final = 16
POWER_MIN: Final = 0.2
"""No correction goes further than the fifth power of what is wanted."""
SLO_ROOM: Final = 1.05
"""As in the live benchmark: a bound below is missed without any offline work."""
CHECKPOINTED: Final = (Coserve.TIDESERVE, Coserve.CONSERVE)

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOptions:
    """What to simulate."""

    model: ServedModel
    load: ConserveLoad = field(default_factory=ConserveLoad)
    policies: tuple[Coserve, ...] = tuple(Coserve)
    busy_share: float = BUSY_SHARE
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    """But for their policy and room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """What one policy came to."""

    policy: Coserve
    row: CoserveRow
    outcome: CoserveOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """A cell, online-only first."""

    profile: StepTimes
    slos: Slos
    speed: float
    """How many times as fast as recorded the online requests came."""
    results: tuple[PolicyResult, ...]


def measure_cell(options: CellOptions, *, report: Report) -> CellResult:
    """Simulate the cell. Raises: TraceError, ConfigError."""
    return _Cell(options, report=report).measure()


class _Cell:
    def __init__(self, options: CellOptions, *, report: Report) -> None:
        model = options.model
        blocks_total = model.kv_tokens // BLOCK_TOKENS
        context_tokens_max = min(model.context_tokens_max, blocks_total * BLOCK_TOKENS)
        self._options = options
        self._report = report
        self._bounds = Bounds(
            context_tokens_max=context_tokens_max, vocabulary_size=model.vocabulary_size
        )
        self._engine = SchedulerOptions(
            step_tokens_max=STEP_TOKENS_MAX,
            sequences_max=SEQUENCES_MAX,
            block_tokens=BLOCK_TOKENS,
            blocks_total=blocks_total,
            context_tokens_max=context_tokens_max,
            eos_token_ids=frozenset(),
            layers=model.layers,
        )
        self._device = Device(
            times=H100Times(model),
            layers=model.layers,
            link=LINK,
            safepoint_ns=model.safepoint_ns,
            deviation=DEVIATION,
        )

    def measure(self) -> CellResult:
        options = self._options
        profile = profile_device(
            self._device,
            engine=self._engine,
            vocabulary_size=options.model.vocabulary_size,
            seed=options.load.seed,
        )
        recorded = online_requests(options.load, self._bounds)
        speed, alone = self._paced(recorded, profile)
        slos = slos_of(alone)
        results: list[PolicyResult] = []
        for policy in (Coserve.ONLINE_ONLY, *options.policies):
            if policy in [result.policy for result in results]:
                continue
            is_alone = policy is Coserve.ONLINE_ONLY
            outcome = alone if is_alone else self._run(policy, slos, profile, recorded, speed)
            row = row_of(policy.value, [slice_of(outcome)], slos=slos)
            results.append(PolicyResult(policy=policy, row=row, outcome=outcome))
            self._report(f"{options.model.name}, {options.load.workload}, {line_of(row)}")
        return CellResult(profile=profile, slos=slos, speed=speed, results=tuple(results))

    def _paced(
        self, recorded: Sequence[CoserveRequest], profile: StepTimes
    ) -> tuple[float, CoserveOutcome]:
        """Find the speed at which online work alone keeps the engine as busy as wanted.

        Begins with the rate of full steps. Time in steps grows with the speed, only less as batches
        grow: by which power of it, the last two speeds tell.
        """
        tokens = sum(len(request.prompt) + request.output_tokens for request in recorded)
        full = StepWork().with_prefill(tokens=STEP_TOKENS_MAX, tokens_before=0)
        tokens_per_s = STEP_TOKENS_MAX * NS_PER_S / profile.model.predict_ns(full)
        span_s = max(1, recorded[-1].arrival_ns) / NS_PER_S
        speed = self._options.busy_share * tokens_per_s * span_s / tokens
        loose = Slos(ttft_ns=NS_PER_S, tbt_ns=NS_PER_S)  # online-only reads neither
        outcome = self._run(Coserve.ONLINE_ONLY, loose, profile, recorded, speed)
        power = 1.0
        for _ in range(SPEEDS_TRIED_MAX - 1):
            wanted = self._options.busy_share / outcome.busy_share
            if abs(wanted - 1) <= BUSY_SHARE_ERROR_MAX:
                break
            correction, busy_before = wanted ** (1 / power), outcome.busy_share
            speed *= correction
            outcome = self._run(Coserve.ONLINE_ONLY, loose, profile, recorded, speed)
            found = math.log(outcome.busy_share / busy_before) / math.log(correction)
            power = min(1.0, max(POWER_MIN, found))
        return speed, outcome

    def _run(
        self,
        policy: Coserve,
        slos: Slos,
        profile: StepTimes,
        recorded: Sequence[CoserveRequest],
        speed: float,
    ) -> CoserveOutcome:
        options, model = self._options, self._options.model
        online = tuple(
            replace(request, arrival_ns=round(request.arrival_ns / speed)) for request in recorded
        )
        room = host_room(
            host_bytes=HOST_BYTES,
            block_bytes=BLOCK_TOKENS * model.kv_token_bytes,
            kv_blocks=self._engine.blocks_total,
        )
        fitting = model.kv_tokens // OFFLINE_TOKENS_EACH
        run_options = CoserveRunOptions(
            seed=options.load.seed,
            engine=replace(
                self._engine,
                coserve=CoserveOptions(
                    policy=policy,
                    ttft_slo_ns=slos.ttft_ns,
                    tbt_slo_ns=slos.tbt_ns,
                    latency=profile.model,
                    chunk_tokens=CHUNK_TOKENS,
                ),
            ),
            checkpoints=replace(
                options.checkpoints,
                policy="eager" if policy in CHECKPOINTED else "off",
                room=room,
            ),
            vocabulary_size=model.vocabulary_size,
            device=self._device,
            online=online,
            duration_ns=online[-1].arrival_ns,
            offline_open_max=min(fitting, SEQUENCES_MAX) + OFFLINE_WAITING,
            settle_ns=SETTLE_NS,
        )
        return run_coserve(run_options, backlog=offline_backlog(options.load, self._bounds))


def slos_of(outcome: CoserveOutcome) -> Slos:
    """Return a little more than what 99 % of the tokens of a run without offline work keep."""
    requests = slice_of(outcome).requests
    ttfts_ns = [request.ttft_ns for request in requests]
    gaps_ns = [gap for request in requests for gap in request.gaps_ns]
    return Slos(
        ttft_ns=max(1, round(SLO_ROOM * quantile(ttfts_ns, 0.99))),
        tbt_ns=max(1, round(SLO_ROOM * quantile(gaps_ns, 0.99))),
    )


def line_of(row: CoserveRow) -> str:
    """Say in one line what a policy came to."""
    return (
        f"{row.policy}: ttft p99 {row.online_ttft_p99_ms:.0f} ms, "
        f"tbt p99 {row.online_tbt_p99_ms:.0f} ms, "
        f"offline {row.offline_tok_s:.0f} tok/s, total {row.total_tok_s:.0f} tok/s"
    )

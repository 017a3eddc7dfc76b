"""Simulates a run of `bench coserve` that was recorded: what is predicted beside what was measured.

The same requests, backlog, SLOs and bounds of the engine, which is loaded to read them off and does
not run; steps take what the live profile says, and err as it did. Nothing is fitted to the outcome.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.conserve_cell import line_of
from benchmarks.conserve_record import LiveRecord, RecordedOptions, RecordedRow
from benchmarks.coserve import VARIANTS, CoserveBenchmark, worker_config
from benchmarks.coserve_load import LoadOptions, offline_backlog, online_load, online_trace
from benchmarks.coserve_rows import CoserveRow, Slos, row_of
from benchmarks.coserve_simulated import SimulatedEngine, Variant
from benchmarks.coserve_worker import SharedEngine
from libs.kernel.units import NS_PER_MS

COMPARED: Final = {
    "total_tok_s": 0.2,
    "offline_tok_s": 0.2,
    "online_ttft_p99_ms": 0.3,
    "online_tbt_p99_ms": 0.3,
}
"""By how much a prediction may differ, relative to what was measured."""
DEVIATION_OF_ERROR: Final = math.sqrt(math.pi / 2)
"""Standard deviation of what is normally distributed with a mean absolute error of 1."""
DEVIATION_MAX: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedRow:
    """One figure of one policy, measured and predicted."""

    policy: str
    column: str
    live: float
    simulated: float
    error: float | None
    """Relative to what was measured; None where that is 0."""
    is_near: bool
    """Whether the error is as small as COMPARED asks."""
    prediction_bias: float
    """Of the live run: how much longer its steps took than its scheduler expected."""


def replay(
    live: LiveRecord, *, trace: Path | None = None, report: Callable[[str], None]
) -> list[ReplayedRow]:
    """Simulate every policy of the record that has a variant of its name.

    `trace` is where the recorded one lies now, if not where it lay then.
    """
    names = {variant.name: variant for variant in VARIANTS}
    options = _options_of(live.record.options, trace=trace)
    with tempfile.TemporaryDirectory() as folder:
        engine = SharedEngine(worker_config(options, Path(folder)))
        try:
            replayed = _Replay(live, options, engine)
        finally:
            engine.close()
    found = []
    for measured in live.rows:
        if measured.policy in names:
            row = replayed.simulate(names[measured.policy])
            report(line_of(row))
            found += _compared(measured, row)
    return found


class _Replay:
    """The live run's load and engine."""

    def __init__(self, live: LiveRecord, options: CoserveBenchmark, engine: SharedEngine) -> None:
        calibration = live.calibration
        self._load = options.load
        self._slos = Slos(
            ttft_ns=round(calibration.ttft_slo_ms * NS_PER_MS),
            tbt_ns=round(calibration.tbt_slo_ms * NS_PER_MS),
        )
        self._engine = SimulatedEngine(
            options=engine.warm.loaded.scheduler_options,
            room=engine.warm.host_room,
            vocabulary_size=engine.vocabulary_size,
            latency=calibration.latency,
            deviation=min(DEVIATION_MAX, calibration.latency_error * DEVIATION_OF_ERROR),
            seed=options.load.seed,
        )
        self._slices = online_load(
            online_trace(options.load),
            options.load,
            tokens_per_s=options.load_share * live.capacity_tok_s,
            vocabulary_size=engine.vocabulary_size,
        ).slices

    def simulate(self, variant: Variant) -> CoserveRow:
        """Serve all slices, each by a worker that has done nothing yet."""
        results = [
            self._engine.serve(
                variant,
                slice_,
                slos=self._slos,
                backlog=offline_backlog(
                    self._load, vocabulary_size=self._engine.vocabulary_size, name=f"{number}"
                ),
            )
            for number, slice_ in enumerate(self._slices)
        ]
        return row_of(variant.name, results, slos=self._slos)


def _options_of(recorded: RecordedOptions, *, trace: Path | None) -> CoserveBenchmark:
    load = recorded.load
    if trace is None and load.trace != str(None):
        trace = Path(load.trace)
    return CoserveBenchmark(
        load=LoadOptions(
            requests=load.requests,
            slices=load.slices,
            seed=load.seed,
            trace=trace,
        ),
        model=recorded.model,
        load_share=recorded.load_share,
        kv_mib=recorded.kv_mib,
        step_tokens_max=recorded.step_tokens_max,
        threads=recorded.threads,
    )


def _compared(measured: RecordedRow, simulated: CoserveRow) -> list[ReplayedRow]:
    rows = []
    for column, error_max in COMPARED.items():
        live, predicted = getattr(measured, column), getattr(simulated, column)
        error = round(predicted / live - 1, 3) if live else None
        rows.append(
            ReplayedRow(
                policy=measured.policy,
                column=column,
                live=live,
                simulated=predicted,
                error=error,
                is_near=abs(error) <= error_max if error is not None else not predicted,
                prediction_bias=measured.prediction_bias,
            )
        )
    return rows

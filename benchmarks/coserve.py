"""Both tides on one engine: latency of online requests and harvest of offline work, by policy.

    python -m benchmarks.coserve --json FILE

Bursts of online requests at 30 % of what the engine can do, an offline backlog without end, and
every policy of `--coserve` on the same engine, the same requests and the same SLOs. The run is cut
into slices; within a slice the policies take turns, so that a noisy machine disturbs all alike. P99
ratios to online-only come with bootstrap intervals over slices. Two rows are TideServe with parts
left out, in the order in which ConServe's table adds them: the scheduler alone, then safepoints;
checkpoints on top are the policy itself.

First the engine is profiled, and what it can do is measured: `capacity_tok_s` with online requests
that all come at once, `offline_only_tok_s` with the backlog alone. The SLOs are what online
requests alone feel in virtual time, by that profile: the P99 of each, and a twentieth more. A bound
below is missed without any offline work, one far above permits every policy to be slow.

The backlog is 96 sessions at the worker at any time, and under non-preemptive an online request
waits for those before it. A slice is cut off 40 s after its time is over; what is unanswered then
counts as missed, and its wait so far as its latency.

Prompts of the trace are divided by 128 and answers by 4, so that 1,000 requests of eight rows take
half an hour on one core: requests * tokens of each / (0.3 * capacity) for each row. `--out` keeps
each slice as it ends; a run that was cut goes on from there with the same command.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from benchmarks.coserve_load import (
    LoadOptions,
    OnlineLoad,
    Slice,
    offline_backlog,
    online_load,
    online_trace,
)
from benchmarks.coserve_rows import CoserveRow, SliceResult, Slos, quantile, ratios_to, row_of
from benchmarks.coserve_run import RunFolder
from benchmarks.coserve_simulated import SimulatedEngine, Variant
from benchmarks.coserve_worker import SharedEngine, run_slice
from benchmarks.engine import save_random_llama
from benchmarks.provenance import provenance, write_record
from libs.engine.scheduling.coserve import Coserve
from libs.engine.step_times import StepTimes, TimingOptions, measure_step_times
from libs.kernel.errors import ConfigError
from libs.kernel.units import MIB, NS_PER_MS, NS_PER_S, milliseconds
from libs.policy.latency_model import LatencyModel
from libs.runtime.logs import set_up_logs
from services.gpu_worker.config import WorkerConfig
from services.launcher.model_source import find_model

BASELINE: Final = Coserve.ONLINE_ONLY.value
ALONE: Final = Variant(name=BASELINE, policy=Coserve.ONLINE_ONLY)
VARIANTS: Final = (
    Variant(name="tideserve", policy=Coserve.TIDESERVE, checkpoints="eager"),
    Variant(name="conserve", policy=Coserve.CONSERVE, checkpoints="eager"),
    ALONE,
    Variant(name="non-preemptive", policy=Coserve.NON_PREEMPTIVE),
    Variant(name="priority-recompute", policy=Coserve.PRIORITY_RECOMPUTE),
    Variant(name="fixed-chunk", policy=Coserve.FIXED_CHUNK),
    Variant(name="tideserve: scheduler", policy=Coserve.TIDESERVE, has_safepoints=False),
    Variant(name="tideserve: + safepoints", policy=Coserve.TIDESERVE),
)
SATURATING: Final = Variant(name="capacity", policy=Coserve.NON_PREEMPTIVE)
CAPACITY_REQUESTS: Final = 256
SLO_ROOM: Final = 1.05
"""Of the SLOs, over what online requests alone feel."""
RANDOM_LLAMA: Final = "random-llama-100m"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoserveBenchmark:
    """What to measure."""

    load: LoadOptions = field(default_factory=LoadOptions)
    model: str = RANDOM_LLAMA
    """Folder or bundled name; the default is made on the spot."""
    variants: tuple[str, ...] = tuple(variant.name for variant in VARIANTS)
    load_share: float = 0.3
    """Of capacity, taken by online requests."""
    ttft_slo_ms: float | None = None
    """None: a twentieth above the P99 of online requests alone, in virtual time."""
    tbt_slo_ms: float | None = None
    """None: likewise."""
    kv_mib: int = 256
    """Less than the offline sessions could use, so that both tides compete for it."""
    step_tokens_max: int = 256
    profile_s: int = 90
    offline_only_s: int = 30
    threads: int = 1
    out: Path | None = None
    """Folder that keeps what was measured; None: nothing is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the engine can do, and what follows from it."""

    latency: LatencyModel
    latency_error: float
    """Mean, relative, of steps that the fit did not see."""
    slos: Slos
    capacity_tok_s: float
    offline_only_tok_s: float


_CALIBRATIONS: Final = TypeAdapter(Calibration)


def measure(options: CoserveBenchmark, *, report: Report) -> dict[str, object]:
    """Run the benchmark; returns what is written as JSON."""
    chosen = [variant for variant in VARIANTS if variant.name in options.variants]
    unknown = sorted(set(options.variants) - {variant.name for variant in VARIANTS})
    if unknown or BASELINE not in options.variants:
        raise ConfigError(f"--policy: {unknown or BASELINE} (all are compared with {BASELINE})")
    with tempfile.TemporaryDirectory() as folder:
        engine = SharedEngine(worker_config(options, Path(folder)))
        try:
            return asyncio.run(_run(engine, chosen, options, report=report))
        finally:
            engine.close()


def worker_config(options: CoserveBenchmark, folder: Path) -> WorkerConfig:
    """Return the worker that is measured; a model made on the spot is written to the folder."""
    if options.model == RANDOM_LLAMA:
        save_random_llama(folder, seed=options.load.seed)
        model = folder
    else:
        model = find_model(options.model).folder
    return WorkerConfig(
        model=str(model),
        alias="benchmark",
        kv_bytes=options.kv_mib * MIB,
        step_tokens_max=options.step_tokens_max,
        threads=options.threads,
        checkpoints="eager",
    )


async def _run(
    engine: SharedEngine,
    variants: Sequence[Variant],
    options: CoserveBenchmark,
    *,
    report: Report,
) -> dict[str, object]:
    kept = RunFolder(options.out)
    found = await _calibration(engine, options, kept, report=report)
    online = _online_load(options, engine, capacity_tok_s=found.capacity_tok_s)
    results: dict[str, list[SliceResult]] = {variant.name: [] for variant in variants}
    for number, slice_ in enumerate(online.slices):
        turn = number % len(variants)
        for variant in (*variants[turn:], *variants[:turn]):
            result = kept.result(number, variant.name)
            if result is None:
                result = await _serve(engine, variant, slice_, found, options, name=f"{number}")
                kept.keep_result(number, variant.name, result)
            results[variant.name].append(result)
            row = row_of(variant.name, [result], slos=found.slos)
            report(f"slice {number + 1} of {len(online.slices)}: {_line(row)}")
    rows = _rows(results, found, seed=options.load.seed)
    for row in rows:
        report(_line(row))
    return {
        "rows": [asdict(row) for row in rows],
        "offline_only_tok_s": found.offline_only_tok_s,
        "capacity_tok_s": found.capacity_tok_s,
        "calibration": _as_record(found, online),
    }


async def _serve(
    engine: SharedEngine,
    variant: Variant,
    slice_: Slice,
    found: Calibration,
    options: CoserveBenchmark,
    *,
    name: str,
) -> SliceResult:
    return await run_slice(
        engine,
        variant,
        online=slice_.requests,
        offline=offline_backlog(options.load, vocabulary_size=engine.vocabulary_size, name=name),
        duration_ns=slice_.duration_ns,
        slos=found.slos,
        latency=found.latency,
    )


async def _calibration(
    engine: SharedEngine, options: CoserveBenchmark, kept: RunFolder, *, report: Report
) -> Calibration:
    """Return what an earlier part of this run found, or measure it."""
    asked = options_record(options)
    text = kept.calibration(options=asked)
    if text is not None:
        return _CALIBRATIONS.validate_json(text)
    found = await _calibrate(engine, options, report=report)
    kept.keep_calibration(_CALIBRATIONS.dump_json(found).decode(), options=asked)
    return found


async def _calibrate(
    engine: SharedEngine, options: CoserveBenchmark, *, report: Report
) -> Calibration:
    """Measure step times, capacity and the harvest of offline work alone, and set the SLOs."""
    times = await asyncio.to_thread(_step_times, engine, options, report)
    report(f"step times: {100 * times.error:.1f} % mean error of steps not seen")
    capacity_tok_s = await _capacity_tok_s(engine, options, times.model)
    report(f"capacity {capacity_tok_s:.0f} tok/s")
    online = _online_load(options, engine, capacity_tok_s=capacity_tok_s)
    slos = _slos(options, engine, times.model, online)
    report(f"SLOs: TTFT {milliseconds(slos.ttft_ns):.0f} ms, TBT {milliseconds(slos.tbt_ns):.0f}")
    alone = await run_slice(
        engine,
        VARIANTS[0],
        online=(),
        offline=offline_backlog(options.load, vocabulary_size=engine.vocabulary_size, name="alone"),
        duration_ns=options.offline_only_s * NS_PER_S,
        slos=slos,
        latency=times.model,
    )
    offline_only_tok_s = alone.tally.tokens_offline * NS_PER_S / alone.duration_ns
    report(f"offline work alone {offline_only_tok_s:.0f} tok/s")
    return Calibration(
        latency=times.model,
        latency_error=round(times.error, 4),
        slos=slos,
        capacity_tok_s=round(capacity_tok_s, 1),
        offline_only_tok_s=round(offline_only_tok_s, 1),
    )


def _online_load(
    options: CoserveBenchmark, engine: SharedEngine, *, capacity_tok_s: float
) -> OnlineLoad:
    return online_load(
        online_trace(options.load),
        options.load,
        tokens_per_s=options.load_share * capacity_tok_s,
        vocabulary_size=engine.vocabulary_size,
    )


async def _capacity_tok_s(
    engine: SharedEngine, options: CoserveBenchmark, latency: LatencyModel
) -> float:
    """Serve online requests that all come at once."""
    online = _online_load(options, engine, capacity_tok_s=1.0)
    requests = [replace(r, arrival_ns=0) for slice_ in online.slices for r in slice_.requests]
    saturated = await run_slice(
        engine,
        SATURATING,
        online=requests[:CAPACITY_REQUESTS],
        offline=None,
        duration_ns=0,
        slos=Slos(ttft_ns=NS_PER_S, tbt_ns=NS_PER_S),
        latency=latency,
    )
    return saturated.tally.tokens_online * NS_PER_S / saturated.duration_ns


def _step_times(engine: SharedEngine, options: CoserveBenchmark, report: Report) -> StepTimes:
    loaded = engine.warm.loaded

    def timed() -> StepTimes:
        return measure_step_times(
            loaded.runner,
            bounds=loaded.scheduler_options,
            vocabulary_size=engine.vocabulary_size,
            now_ns=engine.clock.now_ns,
            tell=report,
            options=TimingOptions(budget_ns=options.profile_s * NS_PER_S, seed=options.load.seed),
        )

    return engine.executor.submit(timed).result()


def _slos(
    options: CoserveBenchmark, engine: SharedEngine, latency: LatencyModel, online: OnlineLoad
) -> Slos:
    """Return what was given, or a little more than online requests alone feel."""
    simulated = SimulatedEngine(
        options=engine.warm.loaded.scheduler_options,
        room=engine.warm.host_room,
        vocabulary_size=engine.vocabulary_size,
        latency=latency,
    )
    loose = Slos(ttft_ns=NS_PER_S, tbt_ns=NS_PER_S)  # online-only reads neither
    requests = [
        request
        for slice_ in online.slices
        for request in simulated.serve(ALONE, slice_, slos=loose, backlog=iter(())).requests
    ]
    ttft_ns = SLO_ROOM * quantile([r.ttft_ns for r in requests], 0.99)
    tbt_ns = SLO_ROOM * quantile([gap for r in requests for gap in r.gaps_ns], 0.99)
    if options.ttft_slo_ms is not None:
        ttft_ns = options.ttft_slo_ms * NS_PER_MS
    if options.tbt_slo_ms is not None:
        tbt_ns = options.tbt_slo_ms * NS_PER_MS
    return Slos(ttft_ns=round(ttft_ns), tbt_ns=round(tbt_ns))


def _rows(
    results: dict[str, list[SliceResult]], found: Calibration, *, seed: int
) -> list[CoserveRow]:
    rows = []
    for name, of_policy in results.items():
        row = row_of(name, of_policy, slos=found.slos)
        if name != BASELINE:
            ratios = ratios_to(results[BASELINE], of_policy, seed=seed)
            row = replace(row, ttft_p99_ratio=ratios.ttft_p99, tbt_p99_ratio=ratios.tbt_p99)
        rows.append(row)
    return rows


def _line(row: CoserveRow) -> str:
    return (
        f"{row.policy}: ttft p50 {row.online_ttft_p50_ms:.0f} p99 {row.online_ttft_p99_ms:.0f} ms,"
        f" tbt p99 {row.online_tbt_p99_ms:.0f} ms, SLO {100 * row.slo_attainment:.1f} %,"
        f" offline {row.offline_tok_s:.0f} tok/s, total {row.total_tok_s:.0f} tok/s,"
        f" unfinished {row.online_unfinished}"
    )


def _as_record(found: Calibration, online: OnlineLoad) -> dict[str, object]:
    return {
        "latency": asdict(found.latency),
        "latency_error": found.latency_error,
        "ttft_slo_ms": milliseconds(found.slos.ttft_ns),
        "tbt_slo_ms": milliseconds(found.slos.tbt_ns),
        "online_rate_per_s": round(online.rate_per_s, 4),
        "trace_speed": round(online.speed, 4),
        "trace_cv": round(online.cv, 2),
        "trace_idle_seconds_share": round(online.idle_seconds_share, 3),
    }


def options_record(options: CoserveBenchmark) -> dict[str, object]:
    """Return the options as they go into a record."""
    return {
        **asdict(options),
        "variants": list(options.variants),
        "out": str(options.out),
        "load": {name: str(value) for name, value in asdict(options.load).items()},
    }


def _options(arguments: Sequence[str] | None) -> tuple[CoserveBenchmark, Path | None]:
    default = CoserveBenchmark()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the record; default: stdout")
    parser.add_argument("--requests", type=int, default=default.load.requests)
    parser.add_argument("--slices", type=int, default=default.load.slices)
    parser.add_argument("--seed", type=int, default=default.load.seed)
    parser.add_argument("--trace", type=Path, help="published trace instead of made-up arrivals")
    parser.add_argument("--model", default=default.model, help="folder, or tide-tiny")
    parser.add_argument("--policy", action="append", help="repeatable; default: all rows")
    parser.add_argument("--load-share", type=float, default=default.load_share)
    parser.add_argument("--ttft-slo-ms", type=float)
    parser.add_argument("--tbt-slo-ms", type=float)
    parser.add_argument("--kv-mib", type=int, default=default.kv_mib)
    parser.add_argument("--step-tokens-max", type=int, default=default.step_tokens_max)
    parser.add_argument("--profile-s", type=int, default=default.profile_s)
    parser.add_argument("--offline-only-s", type=int, default=default.offline_only_s)
    parser.add_argument("--out", type=Path, help="folder that keeps slices, to go on from")
    given = vars(parser.parse_args(arguments))
    json_file = given.pop("json")
    policies = given.pop("policy")
    load = LoadOptions(
        **{name: given.pop(name) for name in ("requests", "slices", "seed", "trace")}
    )
    variants = default.variants if policies is None else tuple(dict.fromkeys(policies))
    return CoserveBenchmark(load=load, variants=variants, **given), json_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print each turn to stderr, and write the JSON record."""
    options, json_file = _options(arguments)
    set_up_logs(service="benchmark", format_name="console", level="warning")
    result = measure(options, report=lambda line: print(line, file=sys.stderr, flush=True))
    result["record"] = {
        **provenance("benchmarks.coserve"),
        "options": options_record(options),
    }
    write_record(result, json_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())

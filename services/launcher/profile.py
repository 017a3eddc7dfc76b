"""`tideserve profile`: measure how long steps of a model take on this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S, milliseconds
from libs.policy.latency_model import StepWork
from libs.policy.measured_profile import (
    MeasuredProfile,
    json_of_measured_profile,
    planning_profile,
)
from libs.runtime.profile_cache import ProfileCache, cache_folder, processor_name
from services.launcher.console import RESULTS, say, show, show_json
from services.launcher.model_source import find_model
from services.launcher.options import AsJson

ERROR_MAX = 0.05
"""Above, predictions are worth little: something else ran on the machine, or the model is one that
the terms do not fit."""
PROBES = (
    ("one decode behind 256 tokens", StepWork().with_decode(tokens_before=256)),
    ("a prompt of 256 tokens", StepWork().with_prefill(tokens=256, tokens_before=0)),
    (
        "128 more tokens of a prompt of 1,152",
        StepWork().with_prefill(tokens=128, tokens_before=1024),
    ),
)


def profile(
    model: Annotated[
        str | None,
        typer.Option(help="Model folder or hub id; the bundled tiny model if not given."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file instead of the cache of profiles.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of the engine, on a CPU.", min=1)] = 1,
    seconds: Annotated[
        int, typer.Option(help="Time to measure for; loading comes on top.", min=1)
    ] = 90,
    is_json: AsJson = False,
) -> None:
    """Measure how long engine steps take here, for the scheduler and the planner.

    The profile is kept for the user, by model and hardware; `up` finds it there. Nothing else
    should run meanwhile: what disturbs the measurement ends up in every prediction.
    """
    if device not in ("cpu", "cuda"):
        raise ConfigError("--device: must be cpu or cuda")
    source = find_model(model)
    measured, held_out = _measure(source.folder, device=device, threads=threads, seconds=seconds)
    file = _write(measured, out)
    if is_json:
        show_json({"file": str(file), "profile": asdict(measured)})
    else:
        RESULTS.print(_table(measured))
        show(
            f"mean error {100 * measured.error:.1f} % of {held_out} steps that the fit did not see,"
            f" medians of {measured.rounds} rounds"
        )
        show(f"written to {file}")
    if measured.error > ERROR_MAX:
        say(
            f"the error is above {100 * ERROR_MAX:.0f} %: stop what else runs here and measure"
            " again; until then the engine corrects it as it goes"
        )


def _measure(
    folder: Path, *, device: str, threads: int, seconds: int
) -> tuple[MeasuredProfile, int]:
    """Return the profile, and how many steps it was judged by."""
    # Imported here: it brings torch, which takes seconds, and `--help` needs none of it.
    from libs.engine.loading import EngineOptions
    from libs.engine.profiling import measure_profile
    from libs.engine.step_times import TimingOptions

    measured, times = measure_profile(
        str(folder),
        # As a worker does by default: float32 on a CPU.
        options=EngineOptions(dtype="float32" if device == "cpu" else "auto", device=device),
        threads=threads,
        processor=processor_name(),
        timing=TimingOptions(budget_ns=seconds * NS_PER_S),
        tell=say,
    )
    return measured, len(times.held_out)


def _write(measured: MeasuredProfile, out: Path | None) -> Path:
    if out is None:
        return ProfileCache(folder=cache_folder()).write(measured)
    out.write_text(json_of_measured_profile(measured), encoding="utf-8")
    return out


def _table(measured: MeasuredProfile) -> Table:
    hardware = measured.hardware
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{measured.model} on {hardware.name}, {hardware.threads} threads")
    table.add_column("ms", justify="right")
    for name, work in PROBES:
        table.add_row(name, f"{milliseconds(measured.latency.predict_ns(work)):.2f}")
    if measured.size is not None:
        times = planning_profile(measured).times_by_shards[1]
        for batch, layer_ns in times.decode_ns:
            step_ns = layer_ns * measured.size.layers
            table.add_row(f"decode of {batch}, typical context", f"{milliseconds(step_ns):.2f}")
    return table

"""Loads an engine, measures it, and says what it was measured on."""

import datetime
import time
from collections.abc import Callable
from pathlib import Path

import torch

from libs.engine.loading import (
    EngineOptions,
    engine_device,
    engine_dtype,
    load_engine,
    resolve_model_folder,
)
from libs.engine.model_config import VariantNotSupported, read_model_config
from libs.engine.model_size import model_digest, size_of
from libs.engine.step_times import StepTimes, TimingOptions, measure_step_times
from libs.policy.measured_profile import Device, Hardware, MeasuredProfile
from libs.policy.model_profile import ModelBytes


def measure_profile(
    model: str,
    *,
    options: EngineOptions,
    threads: int,
    processor: str,
    timing: TimingOptions,
    tell: Callable[[str], None],
) -> tuple[MeasuredProfile, StepTimes]:
    """Load the model and measure it on the calling thread, which does nothing else meanwhile.

    `processor` is what the CPU calls itself. Raises: ModelLoadError.
    """
    torch.set_num_threads(threads)
    folder = resolve_model_folder(model)
    engine = load_engine(str(folder), options=options)
    tell(f"loaded {folder.name}: {engine.scheduler_options.blocks_total} KV blocks")
    times = measure_step_times(
        engine.runner,
        bounds=engine.scheduler_options,
        vocabulary_size=engine.config.vocabulary_size,
        now_ns=time.perf_counter_ns,
        tell=tell,
        options=timing,
    )
    profile = MeasuredProfile(
        model=folder.resolve().name,
        model_digest=model_digest(folder),
        hardware=hardware_of(folder, options=options, threads=threads, processor=processor),
        latency=times.model,
        error=round(times.error, 4),
        step_tokens_max=engine.scheduler_options.step_tokens_max,
        context_tokens_max=engine.config.context_tokens_max,
        size=_size(folder, bytes_per_parameter=engine.dtype.itemsize),
        rounds=times.rounds,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return profile, times


def hardware_of(folder: Path, *, options: EngineOptions, threads: int, processor: str) -> Hardware:
    """Say what an engine of these options computes on."""
    device = engine_device(options)
    kind: Device = "cuda" if device.type == "cuda" else "cpu"
    return Hardware(
        device=kind,
        name=torch.cuda.get_device_name(device) if kind == "cuda" else processor,
        threads=threads,
        dtype=str(engine_dtype(options, folder)).removeprefix("torch."),
    )


def _size(folder: Path, *, bytes_per_parameter: int) -> ModelBytes | None:
    try:
        config = read_model_config(folder)
    except VariantNotSupported:
        return None
    return size_of(config, bytes_per_parameter=bytes_per_parameter)

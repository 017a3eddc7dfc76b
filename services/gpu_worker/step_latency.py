"""How long this worker's engine steps are expected to take before it has run any."""

from pathlib import Path

from libs.engine.loading import EngineOptions, engine_dtype, resolve_model_folder
from libs.engine.model_config import VariantNotSupported, read_model_config
from libs.engine.model_size import model_digest, size_of
from libs.engine.profiling import hardware_of
from libs.policy.assumed_profile import CPU, GPU, assumed_latency_model
from libs.policy.latency_model import LatencyModel
from libs.runtime.profile_cache import (
    AUTO,
    ProfileCache,
    cache_folder,
    processor_name,
    read_measured,
)
from services.gpu_worker.config import WorkerConfig


def step_latency(config: WorkerConfig, options: EngineOptions) -> LatencyModel | None:
    """Return what was measured of this model on this hardware, else what its bytes let assume.

    Of the whole model on one worker; where it is cut, the engine learns the rest as it runs. None
    for a family whose bytes are not known without loading.
    Raises: ConfigError for a profile that is named and cannot be read.
    """
    folder = resolve_model_folder(config.model)
    measured = _measured(folder, config, options)
    if measured is not None:
        return measured
    try:
        model = read_model_config(folder)
    except VariantNotSupported:
        return None
    element_bytes = engine_dtype(options, folder).itemsize
    return assumed_latency_model(
        size=size_of(model, bytes_per_parameter=element_bytes),
        bytes_per_parameter=element_bytes,
        roofline=GPU if config.has_gpu else CPU,
    )


def _measured(folder: Path, config: WorkerConfig, options: EngineOptions) -> LatencyModel | None:
    if config.profile is None:
        return None
    if config.profile != AUTO:
        return read_measured(Path(config.profile).expanduser()).latency
    hardware = hardware_of(
        folder,
        options=options,
        threads=config.threads,
        processor=processor_name(),
    )
    stored = ProfileCache(folder=cache_folder()).find(model_digest(folder), hardware)
    return None if stored is None else stored.profile.latency

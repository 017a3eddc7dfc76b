"""How long this worker's engine steps are expected to take before it has run any."""

from pathlib import Path

from libs.engine.loading import engine_dtype, resolve_model_folder
from libs.engine.model_config import VariantNotSupported, read_model_config
from libs.engine.model_size import model_digest, size_of
from libs.engine.profiling import hardware_of
from libs.policy.assumed_profile import CPU, GPU, assumed_latency_model
from libs.policy.latency_model import LatencyModel
from libs.policy.measured_profile import latency_of_shards
from libs.policy.model_profile import ModelBytes
from libs.runtime.profile_cache import (
    AUTO,
    ProfileCache,
    cache_folder,
    processor_name,
    read_measured,
)
from services.gpu_worker.config import WorkerConfig
from services.gpu_worker.engine_setup import engine_options


def step_latency(config: WorkerConfig, *, shards: int = 1) -> LatencyModel | None:
    """Return what was measured of this model on this hardware, else what its bytes let assume.

    None for a family whose bytes are not known without loading: its engine learns as it runs.
    Raises: ConfigError for a profile that is named and cannot be read.
    """
    folder = resolve_model_folder(config.model)
    size = _size(folder, config)
    roofline = GPU if config.has_gpu else CPU
    latency = _measured(folder, config)
    if latency is None and size is not None:
        latency = assumed_latency_model(
            size=size, bytes_per_parameter=_element_bytes(folder, config), roofline=roofline
        )
    if latency is None or size is None:
        return latency
    return latency_of_shards(latency, size, roofline, shards=shards)


def _measured(folder: Path, config: WorkerConfig) -> LatencyModel | None:
    if config.profile is None:
        return None
    if config.profile != AUTO:
        return read_measured(Path(config.profile).expanduser()).latency
    hardware = hardware_of(
        folder,
        options=engine_options(config),
        threads=config.threads,
        processor=processor_name(),
    )
    stored = ProfileCache(folder=cache_folder()).find(model_digest(folder), hardware)
    return None if stored is None else stored.profile.latency


def _size(folder: Path, config: WorkerConfig) -> ModelBytes | None:
    try:
        model = read_model_config(folder)
    except VariantNotSupported:
        return None
    return size_of(model, bytes_per_parameter=_element_bytes(folder, config))


def _element_bytes(folder: Path, config: WorkerConfig) -> int:
    return engine_dtype(engine_options(config), folder).itemsize

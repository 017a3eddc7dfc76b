"""The profile that a planner plans with: measured where there is one, else assumed."""

from pathlib import Path

from libs.engine.model_config import ModelConfig, read_model_config
from libs.engine.model_size import BYTES_PER_PARAMETER, size_of
from libs.kernel.errors import ConfigError
from libs.policy.assumed_profile import CPU, GPU, assumed_profile
from libs.policy.measured_profile import Device, planning_profile_of_json
from libs.policy.model_profile import ModelProfile
from libs.runtime.profile_cache import profile_file


def read_profile(folder: Path, *, device: str, profile: str | None) -> ModelProfile:
    """Return the profile that is named; without one, what the model's config lets assume.

    Raises: ConfigError for a file that cannot be read, or a model that cannot be cut.
    """
    kind: Device = "cpu" if device == "cpu" else "cuda"
    file = None if profile is None else profile_file(profile, model=folder, device=kind)
    if file is not None:
        return planning_profile_of_json(_read_text(file))
    config = read_model_config(folder)
    bytes_per_parameter = BYTES_PER_PARAMETER[device]
    return assumed_profile(
        name=folder.resolve().name,
        size=size_of(config, bytes_per_parameter=bytes_per_parameter),
        bytes_per_parameter=bytes_per_parameter,
        context_tokens_max=config.context_tokens_max,
        roofline=CPU if device == "cpu" else GPU,
    )


def read_model(folder: Path) -> ModelConfig | None:
    """Return what workers will cut; None if the folder is not on this machine, as where a profile
    names the model."""
    try:
        return read_model_config(folder)
    except ConfigError:
        return None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None

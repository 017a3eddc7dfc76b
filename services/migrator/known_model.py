"""What a migrator knows of the model that it moves: from a profile, else from its folder."""

from dataclasses import dataclass
from pathlib import Path

import structlog

from libs.engine.model_config import read_model_config
from libs.engine.model_size import BYTES_PER_PARAMETER, size_of
from libs.kernel.errors import ConfigError
from libs.policy.model_profile import ModelBytes
from libs.runtime.profile_cache import profile_file, read_measured
from services.migrator.config import MigratorConfig

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """Sizes and speeds that hand-overs are judged by."""

    size: ModelBytes | None
    """None where nothing tells."""
    prefill_tokens_per_s: int


def known_model(config: MigratorConfig) -> KnownModel:
    """Read the profile if one is named or found, else the model's own config.

    Raises: ConfigError for a profile that is named and cannot be read.
    """
    folder = Path(config.model).expanduser()
    file = None
    if config.profile is not None:
        file = profile_file(config.profile, model=folder, device=config.device)
    if file is not None:
        measured = read_measured(file)
        return KnownModel(size=measured.size, prefill_tokens_per_s=measured.prefill_tokens_per_s)
    size = _size(folder, device=config.device) if config.model else None
    return KnownModel(size=size, prefill_tokens_per_s=config.prefill_tokens_per_s)


def _size(folder: Path, *, device: str) -> ModelBytes | None:
    try:
        model = read_model_config(folder)
    except ConfigError as error:
        # A migrator moves what workers hold and needs no model of its own: it only judges worse.
        _log.warning("model_size_unknown", model=str(folder), reason=str(error))
        return None
    return size_of(model, bytes_per_parameter=BYTES_PER_PARAMETER[device])

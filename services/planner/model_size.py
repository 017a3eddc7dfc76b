"""The bytes of a model, from its config.json: what the planner must know of it without loading."""

import math
from pathlib import Path
from typing import Final

from libs.engine.model_config import ModelConfig, read_model_config
from libs.kernel.errors import ConfigError
from libs.policy.assumed_profile import CPU, GPU, assumed_profile
from libs.policy.model_profile import ModelBytes, ModelProfile, profile_of_json

BYTES_PER_PARAMETER: Final = {"cpu": 4, "cuda": 2}
"""What the engine computes in: float32 on a CPU, bfloat16 on a GPU."""


def read_profile(folder: Path, *, device: str, profile_file: Path | None) -> ModelProfile:
    """Return the measured profile, or one assumed from the model's config.

    Raises: ConfigError for a file that cannot be read, or a model that cannot be cut.
    """
    if profile_file is not None:
        return profile_of_json(_read_text(profile_file))
    config = read_model_config(folder)
    bytes_per_parameter = BYTES_PER_PARAMETER[device]
    return assumed_profile(
        name=folder.resolve().name,
        size=size_of(config, bytes_per_parameter=bytes_per_parameter),
        bytes_per_parameter=bytes_per_parameter,
        context_tokens_max=config.context_tokens_max,
        roofline=CPU if device == "cpu" else GPU,
    )


def size_of(config: ModelConfig, *, bytes_per_parameter: int) -> ModelBytes:
    """Count the parameters; norms and biases are too few to matter."""
    hidden = config.hidden_size
    query, key = config.heads * config.head_size, config.kv_heads * config.head_size
    attention = hidden * (query + 2 * key) + query * hidden
    mlp = (len(config.family.names.up) + 1) * hidden * config.intermediate_size
    embedding_bytes = config.vocabulary_size * hidden * bytes_per_parameter
    return ModelBytes(
        layers=config.layers,
        # What shards must divide: the heads, and the width of the MLP.
        heads=math.gcd(config.heads, config.intermediate_size),
        kv_heads=config.kv_heads,
        layer_bytes=(attention + mlp) * bytes_per_parameter,
        embedding_bytes=embedding_bytes,
        head_bytes=embedding_bytes,
        kv_bytes_per_token_layer=2 * key * bytes_per_parameter,
    )


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None

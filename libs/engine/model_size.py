"""The bytes of a model, from its config.json: what must be known of it without loading."""

import hashlib
import math
from pathlib import Path
from typing import Final

from libs.engine.model_config import CONFIG_FILE, ModelConfig
from libs.policy.model_profile import ModelBytes

BYTES_PER_PARAMETER: Final = {"cpu": 4, "cuda": 2}
"""What the engine computes in: float32 on a CPU, bfloat16 on a GPU."""


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


def model_digest(folder: Path) -> str:
    """Return what two folders have in common exactly if they hold the same model, as far as its
    config and the sizes of its weights tell; no weight is read."""
    digest = hashlib.blake2b((folder / CONFIG_FILE).read_bytes(), digest_size=8)
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name}={file.stat().st_size};".encode())
    return digest.hexdigest()

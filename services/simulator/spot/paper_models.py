"""The three models of the SpotServe paper as configs, for the memory that workers compute with.

Source: their published shapes. LLaMA-30B is the artifact's: 48 layers of 64 heads rather than the
60 of 52 that the real one has, with as wide an MLP as its 30 billion parameters leave.
"""

from collections.abc import Mapping
from typing import Final

from libs.contracts.reports import MemoryRule
from libs.engine.families import FAMILIES
from libs.engine.model_config import ModelConfig
from libs.kernel.units import MIB

FP32: Final = MemoryRule(element_bytes=4)
"""As the paper computes, on a GPU: no weight is held twice."""
WORKSPACE_BYTES: Final = 1_024 * MIB
"""For activations and buffers of a GPU: those of 512 tokens at a time take a quarter of it; the
rest is what communication and kernels ask for."""


def _model(
    family: str, *, layers: int, hidden_size: int, heads: int, intermediate_size: int,
    vocabulary_size: int, is_embedding_tied: bool = False,
) -> ModelConfig:  # fmt: skip
    """Return a config whose fields that no byte depends on are the family's usual ones."""
    is_llama = family == "llama"
    return ModelConfig(
        family=FAMILIES[family],
        layers=layers,
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=heads,
        head_size=hidden_size // heads,
        intermediate_size=intermediate_size,
        vocabulary_size=vocabulary_size,
        context_tokens_max=2_048,
        norm_epsilon=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        rotary_size=0 if family == "opt" else hidden_size // heads,
        window_tokens=None,
        activation="silu" if is_llama else "relu" if family == "opt" else "gelu",
        has_qkv_bias=not is_llama,
        has_output_bias=not is_llama,
        has_mlp_bias=not is_llama,
        is_residual_parallel=family == "gpt_neox",
        is_embedding_tied=is_embedding_tied,
        eos_token_ids=frozenset(),
    )


PAPER_MODELS: Final[Mapping[str, ModelConfig]] = {
    "opt-6.7b": _model(
        "opt", layers=32, hidden_size=4_096, heads=32, intermediate_size=16_384,
        vocabulary_size=50_272, is_embedding_tied=True,
    ),
    "gpt-20b": _model(
        "gpt_neox", layers=44, hidden_size=6_144, heads=64, intermediate_size=24_576,
        vocabulary_size=50_432,
    ),
    "llama-30b": _model(
        "llama", layers=48, hidden_size=6_656, heads=64, intermediate_size=22_016,
        vocabulary_size=32_000,
    ),
}  # fmt: skip

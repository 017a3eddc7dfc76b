"""The three models of the SpotServe paper on T4 GPUs, as its artifact measured them.

Source: Hsword/SpotServe (ASPLOS 2024), profile per layer in ms at 512 input tokens; sizes are
parameters in fp32 (table 1: 25.0, 74.5 and 111.8 GiB). The artifact pads 44 and 32 layers to 48 and
36 for the choice of P, and asks for at least 4, 12 and 16 GPUs. Golden execution times of batch 1:
5.447, 14.373 and 17.540 s.
"""

from collections.abc import Mapping
from typing import Final

from libs.kernel.units import NS_PER_MS
from libs.policy.model_profile import LayerTimes, ModelBytes, ModelProfile, TimesByBatch

T4_BYTES: Final = 15_843_721_216
"""What a T4 of 16 GB leaves to a process (15 109 MiB)."""
SPOT_USD_PER_HOUR: Final = 1.9046
ON_DEMAND_USD_PER_HOUR: Final = 3.912
"""Of a g4dn.12xlarge with four T4, as the artifact charges them."""


def _ms(*values: float) -> TimesByBatch:
    """Times of the batches 1, 2 and 4."""
    return tuple(
        (batch, round(value * NS_PER_MS)) for batch, value in zip((1, 2, 4), values, strict=True)
    )


def _size(*, layers: int, heads: int, hidden: int, parameters: int) -> ModelBytes:
    """Bytes in fp32; the embeddings are counted among the layers, as the table does."""
    return ModelBytes(
        layers=layers,
        heads=heads,
        kv_heads=heads,
        layer_bytes=4 * parameters // layers,
        embedding_bytes=0,
        head_bytes=0,
        kv_bytes_per_token_layer=2 * 4 * hidden,
    )


OPT_6_7B: Final = ModelProfile(
    name="opt-6.7b",
    source="SpotServe artifact, T4",
    size=_size(layers=32, heads=32, hidden=4096, parameters=6_700_000_000),
    times_by_shards={
        4: LayerTimes(prefill_ns=_ms(19.567, 31.043, 61.566), decode_ns=_ms(1.056, 0.932, 1.021)),
    },
    embedding_ns=_ms(0.298, 0.372, 0.461),
    hop_prefill_ns=round(5.3 * NS_PER_MS),
    hop_decode_ns=round(0.07 * NS_PER_MS),
    prompt_tokens=512,
    output_tokens=128,
    stages_divide=36,
    is_prefill_amortised=True,
    replica_workers_min=4,
)
GPT_20B: Final = ModelProfile(
    name="gpt-20b",
    source="SpotServe artifact, T4",
    size=_size(layers=44, heads=64, hidden=6144, parameters=20_000_000_000),
    times_by_shards={
        4: LayerTimes(prefill_ns=_ms(37.562, 64.61, 132.855), decode_ns=_ms(1.968, 1.938, 2.13)),
        8: LayerTimes(prefill_ns=_ms(32.2, 42.778, 80.624), decode_ns=_ms(1.758, 1.764, 1.932)),
    },
    embedding_ns=_ms(0.318, 0.471, 0.607),
    hop_prefill_ns=7 * NS_PER_MS,
    hop_decode_ns=round(0.1 * NS_PER_MS),
    prompt_tokens=512,
    output_tokens=128,
    stages_divide=48,
    is_prefill_amortised=True,
    replica_workers_min=12,
)
LLAMA_30B: Final = ModelProfile(
    name="llama-30b",
    source="SpotServe artifact, T4",
    size=_size(layers=48, heads=64, hidden=6656, parameters=30_000_000_000),
    times_by_shards={
        8: LayerTimes(prefill_ns=_ms(41.947, 67.061, 109.761), decode_ns=_ms(2.263, 2.493, 2.418)),
    },
    embedding_ns=_ms(0.404, 0.519, 0.797),
    hop_prefill_ns=8 * NS_PER_MS,
    hop_decode_ns=round(0.15 * NS_PER_MS),
    prompt_tokens=512,
    output_tokens=128,
    stages_divide=48,
    is_prefill_amortised=True,
    replica_workers_min=16,
)
PAPER_PROFILES: Final[Mapping[str, ModelProfile]] = {
    profile.name: profile for profile in (OPT_6_7B, GPT_20B, LLAMA_30B)
}

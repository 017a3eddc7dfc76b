"""A profile for a model that nobody has measured here: what its bytes and a roofline give.

Good enough to choose between shapes that differ much; `tideserve profile` measures the real one.

    prefill of a layer  2 * parameters * tokens / M / flops        + two all-reduces if M > 1
    decoding            max(layer bytes / M / bandwidth, its flops) + the same
"""

import math
from dataclasses import dataclass
from typing import Final

from libs.kernel.units import NS_PER_MS, NS_PER_S, NS_PER_US
from libs.policy.latency_model import LatencyModel
from libs.policy.model_profile import LayerTimes, ModelBytes, ModelProfile

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
SHARDS: Final = (1, 2, 4, 8)
PROMPT_TOKENS: Final = 256
OUTPUT_TOKENS: Final = 128
"""Of a request, until there are measured ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """What one device and its links are good for, roughly."""

    name: str
    bytes_per_s: int
    flops_per_s: int
    reduce_ns: int
    """One small all-reduce among the shards of a stage."""
    hop_ns: int
    """A small message from stage to stage."""


CPU: Final = Roofline(
    name="one CPU core",
    bytes_per_s=10 * 10**9,
    flops_per_s=100 * 10**9,
    # Less on idle cores, but workers of one machine wait for one another's turn on them.
    reduce_ns=NS_PER_MS,
    hop_ns=300 * NS_PER_US,
)
GPU: Final = Roofline(
    name="a data-centre GPU",
    bytes_per_s=2 * 10**12,
    flops_per_s=300 * 10**12,
    reduce_ns=20 * NS_PER_US,
    hop_ns=30 * NS_PER_US,
)


def assumed_profile(
    *,
    name: str,
    size: ModelBytes,
    bytes_per_parameter: int,
    context_tokens_max: int,
    roofline: Roofline,
) -> ModelProfile:
    """Return the profile of a model on such devices; every M that divides the heads is there."""
    prompt_tokens = min(PROMPT_TOKENS, max(1, context_tokens_max // 2))
    flops_per_token = 2 * size.layer_bytes // bytes_per_parameter
    end_ns = size.head_bytes * NS_PER_S // roofline.bytes_per_s
    return ModelProfile(
        name=name,
        source=f"assumed for {roofline.name}, not measured",
        size=size,
        times_by_shards={
            shards: _layer_times(
                size,
                roofline,
                shards=shards,
                flops_per_token=flops_per_token,
                prompt_tokens=prompt_tokens,
            )
            for shards in SHARDS
            if size.heads % shards == 0
        },
        embedding_ns=((1, end_ns), (BATCHES[-1], 2 * end_ns)),
        hop_prefill_ns=roofline.hop_ns + NS_PER_MS,
        hop_decode_ns=roofline.hop_ns,
        prompt_tokens=prompt_tokens,
        output_tokens=min(OUTPUT_TOKENS, max(1, context_tokens_max // 2)),
        context_tokens_max=context_tokens_max,
    )


def _layer_times(
    size: ModelBytes,
    roofline: Roofline,
    *,
    shards: int,
    flops_per_token: int,
    prompt_tokens: int,
) -> LayerTimes:
    reduces_ns = 2 * roofline.reduce_ns * math.ceil(math.log2(shards))
    read_ns = size.layer_bytes * NS_PER_S // (shards * roofline.bytes_per_s)

    def compute_ns(tokens: int) -> int:
        return flops_per_token * tokens * NS_PER_S // (shards * roofline.flops_per_s)

    return LayerTimes(
        prefill_ns=tuple(
            (batch, max(read_ns, compute_ns(batch * prompt_tokens)) + reduces_ns)
            for batch in BATCHES
        ),
        decode_ns=tuple((batch, max(read_ns, compute_ns(batch)) + reduces_ns) for batch in BATCHES),
    )


def assumed_latency_model(
    *, size: ModelBytes, bytes_per_parameter: int, roofline: Roofline
) -> LatencyModel:
    """Return the step times of a whole model on one such device, unmeasured.

    A step reads all weights; rows are free until multiplying takes longer than that (the knee).
    """
    weight_bytes = size.layers * size.layer_bytes + size.head_bytes
    layer_parameters = size.layers * size.layer_bytes / bytes_per_parameter
    read_ns = weight_bytes * NS_PER_S / roofline.bytes_per_s
    row_ns = 2 * layer_parameters * NS_PER_S / roofline.flops_per_s
    # One query against one key: a product each for scores and values, in every layer and head.
    head_elements = size.kv_bytes_per_token_layer / bytes_per_parameter / 2 / size.kv_heads
    pair_flops = 4 * size.layers * size.heads * head_elements
    return LatencyModel(
        step_ns=read_ns,
        row_ns=0.0,
        pair_prefilled_ns=pair_flops * NS_PER_S / roofline.flops_per_s,
        token_attended_ns=size.layers
        * size.kv_bytes_per_token_layer
        * NS_PER_S
        / roofline.bytes_per_s,
        sequence_ns=2 * size.head_bytes / bytes_per_parameter * NS_PER_S / roofline.flops_per_s,
        row_past_knee_ns=row_ns,
        knee_rows=round(read_ns / row_ns),
    )

"""H100s that serve Llama models in 16 bits: facts, and what steps take by them.

    step = host + head + layers * (linear(rows) + attention) + all-reduces
    linear       Vidur's table of a layer of Llama-2-7B, scaled by the parameters on one GPU
    attention    multiplying: 585 TFLOP/s, which fits both published times of ConServe
                 reading KV: the rate at which the table's smallest batches read weights
    host         what is left of ConServe's 51 ms for a chunk of 2,048 tokens on Llama-3.1-8B

The 124 ms that ConServe measured for the same chunk behind 40 K tokens was not used, and comes out
as 127 ms.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from libs.kernel.units import NS_PER_S, NS_PER_US
from libs.policy.kv_return import HostLink
from libs.policy.latency_model import StepWork

LAYER_US: Final = (
    (1, 176.0), (64, 185.0), (128, 201.0), (192, 233.5), (256, 289.0), (384, 349.0), (512, 378.5),
    (768, 593.0), (1024, 664.0), (1536, 1053.0), (2048, 1278.0), (3072, 2022.0), (4096, 2631.2),
)  # fmt: skip
"""(rows, time of all operators but attention) of one layer of Llama-2-7B on one H100: sums of
medians. Source: microsoft/vidur, data/profiling/compute/h100, llama-2-7b, no tensor parallelism."""
LAYER_PARAMETERS: Final = 4 * 4096**2 + 3 * 4096 * 11008
"""Of that layer."""
ATTENTION_FLOPS_PER_S: Final = 585 * 10**12
"""Source: ConServe's 51 and 124 ms, whose difference is attention alone."""
BYTES_PER_S: Final = 2_660 * 10**9
"""404.8 MB of weights in 152 us, in the matrix products of the same table; 79 % of the HBM3's."""
HOST_NS: Final = 4_600 * NS_PER_US
"""Per step: scheduling, launches, sampling."""
REDUCE_NS: Final = 15 * NS_PER_US
"""A small all-reduce over NVLink; assumed."""
REDUCE_BYTES_PER_S: Final = 300 * 10**9
"""Of a large one among four GPUs; assumed, a third of NVLink's nominal 900 GB/s."""
GPU_BYTES: Final = 80 * 10**9
GPU_SHARE: Final = 0.9
"""Of its memory, for weights, KV and activations; vLLM's default."""
ACTIVATION_BYTES: Final = 2 * 10**9
HOST_BYTES: Final = 2 * 10**12 // 8
"""Host memory for each GPU of ConServe's machine; HostRoom takes what is of use."""
LINK: Final = HostLink(copy_ns=500 * NS_PER_US, bytes_per_s=37 * 10**9)
"""Source: ConServe, 37 GB/s and less than 500 us to gather blocks."""
SAFEPOINT_NS: Final = 10 * NS_PER_US
SAFEPOINT_SHARDED_NS: Final = 167_200
"""Source: ConServe, with tensor parallelism over four GPUs."""
DEVIATION: Final = 0.02
"""Of equal steps; assumed. ConServe's profile errs by less than 4 %, this and its form included."""
PARAMETER_BYTES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model and the GPUs that one replica of it is spread over by tensors."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary_size: int
    context_tokens_max: int
    gpus: int = 1

    @property
    def head_size(self) -> int:
        """Elements of a key, of one head."""
        return self.hidden // self.heads

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * self.head_size
        return attention + 3 * self.hidden * self.intermediate

    @property
    def weight_bytes(self) -> int:
        """Of the whole model, embedding and head apart from one another."""
        ends = 2 * self.vocabulary_size * self.hidden
        return PARAMETER_BYTES * (self.layers * self.layer_parameters + ends)

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token on each of its GPUs."""
        elements = 2 * self.layers * self.kv_heads * self.head_size
        return PARAMETER_BYTES * elements // self.gpus

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV fits beside the weights."""
        bytes_each = int(GPU_SHARE * GPU_BYTES) - self.weight_bytes // self.gpus - ACTIVATION_BYTES
        return bytes_each // self.kv_token_bytes

    @property
    def safepoint_ns(self) -> int:
        """What one safepoint costs."""
        return SAFEPOINT_NS if self.gpus == 1 else SAFEPOINT_SHARDED_NS


def _named(*models: ServedModel) -> Mapping[str, ServedModel]:
    return {model.name: model for model in models}


MODELS: Final = _named(
    ServedModel(
        name="llama-2-7b",
        layers=32,
        hidden=4096,
        intermediate=11008,
        heads=32,
        kv_heads=32,
        vocabulary_size=32_000,
        context_tokens_max=4096,
    ),
    ServedModel(
        name="llama-3.1-8b",
        layers=32,
        hidden=4096,
        intermediate=14336,
        heads=32,
        kv_heads=8,
        vocabulary_size=128_256,
        context_tokens_max=131_072,
    ),
    ServedModel(
        name="llama-3.1-70b",
        layers=80,
        hidden=8192,
        intermediate=28672,
        heads=64,
        kv_heads=8,
        vocabulary_size=128_256,
        context_tokens_max=131_072,
        gpus=4,
    ),
)


class H100Times:
    """What steps of one model take on its H100s."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._layer_scale = model.layer_parameters / model.gpus / LAYER_PARAMETERS
        head_bytes = PARAMETER_BYTES * model.vocabulary_size * model.hidden / model.gpus
        self._fixed_ns = HOST_NS + head_bytes * NS_PER_S / BYTES_PER_S
        pair_flops = 4 * model.layers * model.hidden / model.gpus
        self._pair_ns = pair_flops * NS_PER_S / ATTENTION_FLOPS_PER_S
        self._token_attended_ns = model.kv_token_bytes * NS_PER_S / BYTES_PER_S
        self._reduces = 2 * model.layers if model.gpus > 1 else 0
        # Each GPU sends and receives all but its own share, twice: to add up, and to spread.
        row_bytes = 2 * (model.gpus - 1) / model.gpus * PARAMETER_BYTES * model.hidden
        self._reduce_row_ns = row_bytes * NS_PER_S / REDUCE_BYTES_PER_S

    def predict_ns(self, work: StepWork) -> int:
        """See StepTimes."""
        layer_ns = layer_us(work.rows) * NS_PER_US * self._layer_scale
        return round(
            self._fixed_ns
            + self._model.layers * layer_ns
            + self._reduces * (REDUCE_NS + self._reduce_row_ns * work.rows)
            + self._pair_ns * work.pairs_prefilled
            + self._token_attended_ns * work.tokens_attended
        )


def layer_us(rows: int) -> float:
    """Return the time of the table's layer, between and beyond its points along lines."""
    index = bisect_left(LAYER_US, rows, lo=1, hi=len(LAYER_US) - 1, key=lambda point: point[0])
    (rows_below, below), (rows_above, above) = LAYER_US[index - 1], LAYER_US[index]
    return below + (above - below) * (rows - rows_below) / (rows_above - rows_below)

"""What the cost model knows of one model on one kind of GPU: bytes, and measured times.

A profile is data. The paper's are in `paper_profiles.py`; one that was measured on this hardware
has the same form, as JSON, with the bytes of the real checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from libs.contracts.wire import describe
from libs.kernel.errors import ConfigError

TimesByBatch: TypeAlias = tuple[tuple[int, int], ...]
"""(sequences, ns), ascending; linear between two points and beyond the last two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBytes:
    """The memory that a model takes, whole; a shard holds its part of each."""

    layers: int
    heads: int
    kv_heads: int
    layer_bytes: int
    embedding_bytes: int
    """Of the first stage alone."""
    head_bytes: int
    """Of the last stage alone; counts again where it is tied to the embedding."""
    kv_bytes_per_token_layer: int
    """Keys and values of one token in one layer, all KV heads."""

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.kv_heads, self.layer_bytes) < 1:
            raise ConfigError("profile: layers, heads, kv_heads and layer_bytes are at least 1")

    @property
    def weight_bytes(self) -> int:
        """All weights once."""
        return self.layers * self.layer_bytes + self.embedding_bytes + self.head_bytes

    def kv_share(self, shards: int) -> float:
        """The part of a token's KV that one shard holds; a KV head is never cut, but replicated."""
        return max(1 / shards, 1 / self.kv_heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Time of one layer at one tensor degree."""

    prefill_ns: TimesByBatch
    """For prompts of `prompt_tokens` each."""
    decode_ns: TimesByBatch
    """For one token of each sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """Everything that the search over configurations needs to know."""

    name: str
    source: str
    """Where the numbers come from, for people."""
    size: ModelBytes
    times_by_shards: Mapping[int, LayerTimes]
    """Tensor degrees that were measured; others are not considered."""
    embedding_ns: TimesByBatch
    """Once in and once out of the model."""
    hop_prefill_ns: int
    """From one stage to the next, the prompts of a batch."""
    hop_decode_ns: int
    prompt_tokens: int
    """Typical request; also what prefill was measured with."""
    output_tokens: int
    context_tokens_max: int = 0
    """The longest request; a replica that cannot hold its KV is none."""
    margin_percent: int = 110
    """What is predicted is this much longer than the sum of the parts (the artifact's 1.1)."""
    stages_divide: int | None = None
    """P must divide this many (padded) layers; None: stages may be uneven."""
    is_prefill_amortised: bool = False
    """As in the artifact, a prefill in M1 micro-batches counts as 1/M1 of the time they take
    together. Right for its figures, too little for ours."""
    replica_workers_min: int = 1
    """A memory limit that was published as a number of GPUs."""

    def __post_init__(self) -> None:
        if not self.times_by_shards or not self.embedding_ns:
            raise ConfigError("profile: times of at least one tensor degree are needed")
        for times in self.times_by_shards.values():
            for table in (times.prefill_ns, times.decode_ns, self.embedding_ns):
                batches = [batch for batch, _ in table]
                if not batches or batches != sorted(set(batches)):
                    raise ConfigError("profile: times are listed by ascending batch")

    def __hash__(self) -> int:
        # A mapping has no hash; the scalars tell profiles apart well enough.
        return hash((self.name, self.prompt_tokens, self.output_tokens, self.margin_percent))

    @property
    def session_tokens(self) -> int:
        """Tokens whose KV one request holds at its end."""
        return self.prompt_tokens + self.output_tokens


_PROFILES: TypeAdapter[ModelProfile] = TypeAdapter(ModelProfile)


def profile_of_json(text: str) -> ModelProfile:
    """Read a measured profile. Raises: ConfigError naming the field that is wrong."""
    try:
        return _PROFILES.validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"profile: {describe(error)}") from None


def json_of_profile(profile: ModelProfile) -> str:
    """Write a profile so that `profile_of_json` reads the same."""
    return _PROFILES.dump_json(profile, indent=1).decode()


def time_ns(table: TimesByBatch, batch: float) -> float:
    """Look a batch up on the line between its neighbours, or through the last two beyond them.

    A table of one point grows in proportion; no batch takes less than a smaller one measured last.
    """
    first, first_ns = table[0]
    if len(table) == 1:
        return first_ns * max(1.0, batch / first)
    if batch <= first:
        return first_ns
    for (low, low_ns), (high, high_ns) in pairwise(table):
        if batch <= high:
            return low_ns + (high_ns - low_ns) * (batch - low) / (high - low)
    return max(high_ns, high_ns + (high_ns - low_ns) * (batch - high) / (high - low))

"""How long a request takes on a shape, and how much a worker must hold for it.

Source: SpotServe section 3.2 and its artifact; with the paper's profiles this gives its table 1 to
the digit. With f = ceil(layers / P), micro-batches of B/M1 in prefill and B/M2 in decoding:

    t1    = prefill[M][B/M1] * f * (P + M1 - 1)/M1 + hop_prefill * (P - 1)/M1
    t2    = decode[M][B/M2]  * f * (P + M2 - 1)    + hop_decode  * (P - 1)/M2
    l_exe = 1.1 * (t1 + t2 * S_out + 2 * embedding[B])

The prefill term scales with the prompt; M1 and M2 are the powers of two that serve it best. A
profile that is not the artifact's own is spared its division of t1 by M1, which takes the prefill
of one micro-batch for that of all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from libs.kernel.units import NS_PER_S
from libs.policy.model_profile import ModelProfile, time_ns
from libs.policy.shapes import ReplicaShape


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTimes:
    """Of one batch on one replica, margin included."""

    prefill_ns: int
    step_ns: int
    """One token of every sequence."""
    embedding_ns: int

    def execution_ns(self, *, output_tokens: int) -> int:
        """l_exe(S_out | S_in): from the start of the prefill to the last token."""
        return self.prefill_ns + self.step_ns * output_tokens + self.embedding_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """Into how many parts a batch is cut on its way through the stages."""

    prefill: int
    """M1."""
    decode: int
    """M2."""

    def __post_init__(self) -> None:
        assert self.prefill >= 1
        assert self.decode >= 1


def batch_times(
    profile: ModelProfile,
    shape: ReplicaShape,
    *,
    batch: int,
    prompt_tokens: int | None = None,
    parts: MicroBatches | None = None,
) -> BatchTimes:
    """Predict a batch. The shape's tensor degree must be one that was measured.

    Without `parts` each phase is cut as serves this batch best. An engine that was started for
    another batch keeps its parts, and cuts nothing that they do not divide: the artifact's does so.
    """
    best = best_parts(profile, shape, batch=batch) if parts is None else parts
    prompt_share = (prompt_tokens or profile.prompt_tokens) / profile.prompt_tokens
    prefill_parts = best.prefill if batch % best.prefill == 0 else 1
    decode_parts = best.decode if batch % best.decode == 0 else 1
    prefill_ns = _prefill_ns(profile, shape, batch=batch, parts=prefill_parts)
    step_ns = _step_ns(profile, shape, batch=batch, parts=decode_parts)
    margin = profile.margin_percent / 100
    return BatchTimes(
        prefill_ns=round(margin * prefill_ns * prompt_share),
        step_ns=round(margin * step_ns),
        embedding_ns=round(margin * 2 * time_ns(profile.embedding_ns, batch)),
    )


def best_parts(profile: ModelProfile, shape: ReplicaShape, *, batch: int) -> MicroBatches:
    """Choose the powers of two that serve a batch best; the fewer where they serve alike."""
    allowed = list(_micro_batches(batch))
    return MicroBatches(
        prefill=min(allowed, key=lambda n: _prefill_ns(profile, shape, batch=batch, parts=n)),
        decode=min(allowed, key=lambda n: _step_ns(profile, shape, batch=batch, parts=n)),
    )


def _prefill_ns(profile: ModelProfile, shape: ReplicaShape, *, batch: int, parts: int) -> float:
    times = profile.times_by_shards[shape.shards]
    stage_layers = math.ceil(profile.size.layers / shape.stages)
    hops = shape.stages - 1
    part_ns = time_ns(times.prefill_ns, batch / parts) * stage_layers
    whole_ns = part_ns * (hops + parts) + profile.hop_prefill_ns * hops
    return whole_ns / (parts if profile.is_prefill_amortised else 1)


def _step_ns(profile: ModelProfile, shape: ReplicaShape, *, batch: int, parts: int) -> float:
    times = profile.times_by_shards[shape.shards]
    stage_layers = math.ceil(profile.size.layers / shape.stages)
    hops = shape.stages - 1
    part_ns = time_ns(times.decode_ns, batch / parts) * stage_layers
    return part_ns * (hops + parts) + profile.hop_decode_ns * hops / parts


def execution_ns(profile: ModelProfile, shape: ReplicaShape, *, batch: int) -> int:
    """l_exe of the profile's typical request."""
    times = batch_times(profile, shape, batch=batch)
    return times.execution_ns(output_tokens=profile.output_tokens)


def requests_per_s(*, replicas: int, batch: int, execution_ns: int) -> float:
    """phi(C): what D replicas finish when every batch is full."""
    return replicas * batch * NS_PER_S / execution_ns


def queueing_ns(
    *,
    requests_per_s: float,
    slots: int,
    service_ns: int,
    arrival_variation: float = 1.0,
    service_variation: float = 1.0,
) -> int | None:
    """l_sch: mean wait for one of `slots`; None where more arrives than can be served.

    Variations are squared coefficients. Source: Allen and Cunneen's G/G/c with Sakasegawa's
    approximation of Erlang's C; exact for M/M/1. The paper names l_sch but its code omits it.
    """
    load = requests_per_s * service_ns / NS_PER_S / slots
    if load >= 1:
        return None
    wait = math.pow(load, math.sqrt(2 * (slots + 1)) - 1) / (slots * (1 - load))
    return round(wait * service_ns * (arrival_variation + service_variation) / 2)


def weight_bytes_max(profile: ModelProfile, shape: ReplicaShape) -> int:
    """Weights on the worker of a replica that holds the most."""
    size = profile.size
    stage_layers = math.ceil(size.layers / shape.stages)
    ends = [size.embedding_bytes, size.head_bytes]
    end_bytes = sum(ends) if shape.stages == 1 else max(ends)
    return math.ceil((stage_layers * size.layer_bytes + end_bytes) / shape.shards)


def kv_bytes_max(profile: ModelProfile, shape: ReplicaShape, *, tokens: int) -> int:
    """KV of so many tokens, on the worker that holds the most of it."""
    size = profile.size
    stage_layers = math.ceil(size.layers / shape.stages)
    token_bytes = stage_layers * size.kv_bytes_per_token_layer * size.kv_share(shape.shards)
    return math.ceil(token_bytes * tokens)


def _micro_batches(batch: int) -> Iterator[int]:
    parts = 1
    while parts <= batch:
        yield parts
        parts *= 2

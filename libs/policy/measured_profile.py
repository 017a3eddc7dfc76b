"""What `tideserve profile` found out about one model on one kind of hardware.

One measurement serves two readers: the scheduler takes the latency model as it is, the planner a
ModelProfile made of it, in which every batch costs what the model says of the step that it makes.
One worker was measured, so a single stage of a single shard is exact (to the fit's error) and every
other shape is that, divided, plus what the device's links are assumed to cost.
"""

import json
import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from libs.contracts.wire import describe
from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from libs.policy.assumed_profile import (
    BATCHES,
    CPU,
    GPU,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    SHARDS,
    Roofline,
)
from libs.policy.latency_model import Communication, LatencyModel, StepWork
from libs.policy.model_profile import (
    LayerTimes,
    ModelBytes,
    ModelProfile,
    TimesByBatch,
    profile_of_json,
)

Device: TypeAlias = Literal["cpu", "cuda"]
MEASURED_FIELD: Final = "latency"
"""A file that has it is a measurement; else it is a ModelProfile that somebody wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a measurement is good for; any difference asks for another."""

    device: Device
    name: str
    """Of the processor or the GPU, as it calls itself."""
    threads: int
    """Of the engine; 1 on a GPU."""
    dtype: str
    """Of weights and KV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredProfile:
    """One measurement, as it is stored."""

    model: str
    """Name of its folder, for people."""
    model_digest: str
    """Of its config and the sizes of its weights."""
    hardware: Hardware
    latency: LatencyModel
    error: float
    """Mean relative error against steps that the fit did not see."""
    step_tokens_max: int
    """The largest step that was measured."""
    context_tokens_max: int
    size: ModelBytes | None
    """None for a family that cannot be cut, for which nothing is to be planned."""
    rounds: int
    measured_at: str
    """Date and time, UTC."""

    @property
    def prefill_tokens_per_s(self) -> int:
        """How fast the KV of a long prompt is computed anew, alone."""
        work = StepWork().with_prefill(tokens=self.step_tokens_max, tokens_before=0)
        return self.step_tokens_max * NS_PER_S // max(1, self.latency.predict_ns(work))


_MEASURED: TypeAdapter[MeasuredProfile] = TypeAdapter(MeasuredProfile)


def measured_profile_of_json(text: str) -> MeasuredProfile:
    """Read what `json_of_measured_profile` wrote. Raises: ConfigError naming the wrong field."""
    try:
        return _MEASURED.validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"profile: {describe(error)}") from None


def json_of_measured_profile(profile: MeasuredProfile) -> str:
    """Write a measurement for people and for `measured_profile_of_json`."""
    return _MEASURED.dump_json(profile, indent=1).decode() + "\n"


def planning_profile_of_json(text: str) -> ModelProfile:
    """Read a measurement, or a ModelProfile written by hand, as what the planner needs.

    Raises: ConfigError naming the field that is wrong, or that the model cannot be cut.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"profile: {error}") from None
    if isinstance(fields, dict) and MEASURED_FIELD in fields:
        return planning_profile(measured_profile_of_json(text))
    return profile_of_json(text)


def planning_profile(
    measured: MeasuredProfile,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    output_tokens: int = OUTPUT_TOKENS,
) -> ModelProfile:
    """Return what the search over shapes needs, for requests of this length where the context
    allows it. Raises: ConfigError for a model that cannot be cut."""
    size = measured.size
    if size is None:
        raise ConfigError(f"profile: {measured.model} cannot be cut, so nothing is to be planned")
    roofline = CPU if measured.hardware.device == "cpu" else GPU
    prompt_tokens = min(prompt_tokens, max(1, measured.context_tokens_max // 2))
    output_tokens = min(output_tokens, max(1, measured.context_tokens_max // 2))
    request = _TypicalRequest(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        step_tokens_max=measured.step_tokens_max,
    )
    return ModelProfile(
        name=measured.model,
        source=f"measured on {measured.hardware.name} at {measured.measured_at}, "
        "links between workers assumed",
        size=size,
        times_by_shards={
            shards: _layer_times(
                latency_of_shards(measured.latency, size, roofline, shards=shards),
                request,
                layers=size.layers,
            )
            for shards in SHARDS
            if size.heads % shards == 0
        },
        # Part of the measured steps, hence of the layers' times.
        embedding_ns=((1, 0),),
        hop_prefill_ns=roofline.hop_ns,
        hop_decode_ns=roofline.hop_ns,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        context_tokens_max=measured.context_tokens_max,
        margin_percent=100,
    )


def latency_of_shards(
    latency: LatencyModel, size: ModelBytes, roofline: Roofline, *, shards: int
) -> LatencyModel:
    """Return the latency model of so many shards: two all-reduces per layer come on top."""
    if shards == 1:
        return latency
    reduces = 2 * size.layers * math.ceil(math.log2(shards))
    return latency.cut(
        shards=shards, communication=Communication(step_ns=reduces * roofline.reduce_ns)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _TypicalRequest:
    prompt_tokens: int
    output_tokens: int
    step_tokens_max: int

    def prefill_ns(self, latency: LatencyModel, *, batch: int) -> float:
        """Time of the prompts of a batch, in as many steps as they take."""
        work = StepWork()
        for _ in range(batch):
            work = work.with_prefill(tokens=self.prompt_tokens, tokens_before=0)
        steps = math.ceil(work.rows / self.step_tokens_max)
        return latency.predict_ns(work) + (steps - 1) * latency.step_ns

    def decode_ns(self, latency: LatencyModel, *, batch: int) -> float:
        """Time of one token for each, halfway through the answers."""
        work = StepWork()
        for _ in range(batch):
            work = work.with_decode(tokens_before=self.prompt_tokens + self.output_tokens // 2)
        return latency.predict_ns(work)


def _layer_times(latency: LatencyModel, request: _TypicalRequest, *, layers: int) -> LayerTimes:
    prefill_ns: TimesByBatch = tuple(
        (batch, round(request.prefill_ns(latency, batch=batch) / layers)) for batch in BATCHES
    )
    decode_ns: TimesByBatch = tuple(
        (batch, round(request.decode_ns(latency, batch=batch) / layers)) for batch in BATCHES
    )
    return LayerTimes(prefill_ns=prefill_ns, decode_ns=decode_ns)

"""Reads a Hugging Face config.json into the few facts that the decoder needs, or says why not."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from libs.kernel.errors import ConfigError

CONFIG_FILE: Final = "config.json"
GENERATION_CONFIG_FILE: Final = "generation_config.json"


class ModelLoadError(ConfigError):
    """A model that cannot be loaded; one line that names the file and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What tells one decoder architecture from another; all else is the same for every family."""

    model_type: str
    """As config.json spells it."""
    has_qkv_bias: bool | None
    """None: config.json decides by attention_bias."""
    has_output_bias: bool | None
    """Of the attention's output projection. None: config.json decides by attention_bias."""


FAMILIES: Final = {
    family.model_type: family
    for family in (
        Family(model_type="llama", has_qkv_bias=None, has_output_bias=None),
        Family(model_type="qwen2", has_qkv_bias=True, has_output_bias=False),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Stretches the long wavelengths of the rotary embedding (rope_type "llama3")."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Divides every position by a factor (rope_type "linear")."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder."""

    family: Family
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    vocabulary_size: int
    context_tokens_max: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: Llama3Scaling | LinearScaling | None
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    is_embedding_tied: bool
    eos_token_ids: frozenset[int]
    """From generation_config.json if it names any, else from config.json, as transformers does."""
    dtype_name: str | None
    """What the weights are stored in, as config.json says."""


class _Fields:
    """Typed access to one JSON object; every refusal names the file and the field."""

    def __init__(self, path: Path, values: dict[str, object]) -> None:
        self.path = path
        self._values = values

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelLoadError(f"{self.path}: {name} is {value!r}, not a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ModelLoadError(f"{self.path}: {name} is {value!r}, not a positive number")
        return float(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self._values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ModelLoadError(f"{self.path}: {name} is {value!r}, neither true nor false")
        return value

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self._values.get(name)
        return value if isinstance(value, str) else default

    def fields(self, name: str) -> "_Fields":
        value = self._values.get(name)
        return _Fields(self.path, value if isinstance(value, dict) else {})

    def token_ids(self, name: str) -> frozenset[int]:
        value = self._values.get(name)
        ids = value if isinstance(value, list) else [value]
        return frozenset(token_id for token_id in ids if isinstance(token_id, int))


def read_model_config(folder: Path) -> ModelConfig:
    """Read the folder's config.json and generation_config.json.

    Raises: ModelLoadError for a missing or broken file, an unsupported family or option.
    """
    fields = _read_fields(folder / CONFIG_FILE)
    family = _family(fields)
    _refuse_unsupported(fields)
    rope = fields.fields("rope_parameters")
    attention_bias = fields.flag("attention_bias")
    heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    config = ModelConfig(
        family=family,
        layers=fields.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", default=heads),
        head_size=fields.integer("head_dim", default=hidden_size // heads),
        intermediate_size=fields.integer("intermediate_size"),
        vocabulary_size=fields.integer("vocab_size"),
        context_tokens_max=fields.integer("max_position_embeddings"),
        norm_epsilon=fields.number("rms_norm_eps", default=1e-6),
        rope_theta=rope.number("rope_theta", default=fields.number("rope_theta", default=10_000.0)),
        rope_scaling=_rope_scaling(fields),
        has_qkv_bias=attention_bias if family.has_qkv_bias is None else family.has_qkv_bias,
        has_output_bias=(
            attention_bias if family.has_output_bias is None else family.has_output_bias
        ),
        has_mlp_bias=fields.flag("mlp_bias"),
        is_embedding_tied=fields.flag("tie_word_embeddings"),
        eos_token_ids=_eos_token_ids(folder, fields),
        dtype_name=fields.text("dtype", fields.text("torch_dtype")),
    )
    if config.heads % config.kv_heads != 0 or config.head_size % 2 != 0:
        raise ModelLoadError(
            f"{fields.path}: {config.heads} heads over {config.kv_heads} KV heads of size "
            f"{config.head_size} do not divide evenly"
        )
    return config


def _read_fields(path: Path) -> _Fields:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{path}: no such file; a Hugging Face model folder has one") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelLoadError(f"{path}: not a JSON object")
    return _Fields(path, values)


def _family(fields: _Fields) -> Family:
    model_type = fields.text("model_type")
    family = FAMILIES.get(model_type or "")
    if family is None:
        raise ModelLoadError(
            f"{fields.path}: model_type {model_type!r} is not supported; "
            f"supported are: {', '.join(sorted(FAMILIES))}"
        )
    return family


def _refuse_unsupported(fields: _Fields) -> None:
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelLoadError(f"{fields.path}: hidden_act {activation!r} is not supported: silu is")
    if fields.flag("use_sliding_window"):
        raise ModelLoadError(f"{fields.path}: use_sliding_window is not supported")
    if fields.has("quantization_config"):
        raise ModelLoadError(f"{fields.path}: quantized weights are not supported")


def _rope_scaling(fields: _Fields) -> Llama3Scaling | LinearScaling | None:
    # transformers 5 writes rope_parameters; before it was rope_scaling, with or without "type".
    name = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    rope = fields.fields(name)
    rope_type = rope.text("rope_type", rope.text("type", "default"))
    match rope_type:
        case "default":
            return None
        case "linear":
            return LinearScaling(factor=rope.number("factor"))
        case "llama3":
            return Llama3Scaling(
                factor=rope.number("factor"),
                low_frequency_factor=rope.number("low_freq_factor"),
                high_frequency_factor=rope.number("high_freq_factor"),
                original_context_tokens=rope.integer("original_max_position_embeddings"),
            )
        case _:
            raise ModelLoadError(
                f"{fields.path}: rope type {rope_type!r} is not supported; "
                "supported are: default, linear, llama3"
            )


def _eos_token_ids(folder: Path, fields: _Fields) -> frozenset[int]:
    path = folder / GENERATION_CONFIG_FILE
    if path.exists():
        token_ids = _read_fields(path).token_ids("eos_token_id")
        if token_ids:
            return token_ids
    return fields.token_ids("eos_token_id")

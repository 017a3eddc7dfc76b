"""Reads a Hugging Face config.json into the few facts that the decoder needs, or says why not."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from libs.engine.families import FAMILIES, BiasField, Family
from libs.kernel.errors import ConfigError

CONFIG_FILE: Final = "config.json"
GENERATION_CONFIG_FILE: Final = "generation_config.json"


class ModelLoadError(ConfigError):
    """A model that cannot be loaded; one line that names the file and the reason."""


class VariantNotSupported(ModelLoadError):
    """A sound model folder whose family, or an option of it, the compact decoder does not know."""


Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
ACTIVATIONS: Final[dict[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""By their names in config.json."""


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
class DecoderShape:
    """What the engine around a decoder needs to know of it."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary_size: int
    context_tokens_max: int
    windows: frozenset[int]
    """The sliding windows of its layers, in tokens; empty: every layer sees all."""
    eos_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What the compact decoder needs to know of a model."""

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
    rotary_size: int
    """Elements of each head that the rotary embedding turns, from the first; 0: none."""
    window_tokens: int | None
    """Tokens that each token sees, itself included; None: all before it."""
    activation: Activation
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    is_residual_parallel: bool
    """Attention and MLP read the same input, and their outputs are added to it together."""
    is_embedding_tied: bool
    eos_token_ids: frozenset[int]

    @property
    def shape(self) -> DecoderShape:
        """What the engine around the decoder needs to know of it."""
        return DecoderShape(
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            vocabulary_size=self.vocabulary_size,
            context_tokens_max=self.context_tokens_max,
            windows=frozenset() if self.window_tokens is None else frozenset({self.window_tokens}),
            eos_token_ids=self.eos_token_ids,
        )


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

    def optional_integer(self, name: str, default: int | None) -> int | None:
        """A field that may be null, which is not the same as missing."""
        value = self._values.get(name, default)
        return None if value is None else self.integer(name, default)

    def is_plain(self, name: str, value: object) -> bool:
        """Whether the field is missing, null or just this value."""
        return self._values.get(name) in (None, value)

    def bias(self, source: bool | BiasField) -> bool:
        if isinstance(source, bool):
            return source
        return self.flag(source.name, default=source.default)

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

    Raises: ModelLoadError for a missing or broken file; VariantNotSupported for a family or an
    option that the compact decoder does not know.
    """
    fields = _read_fields(folder / CONFIG_FILE)
    refuse_quantized(folder)
    family = _family(fields)
    _refuse_variants(fields, family)
    heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    head_size = fields.integer("head_dim", default=family.head_size_default or hidden_size // heads)
    config = ModelConfig(
        family=family,
        layers=fields.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", default=heads),
        head_size=head_size,
        intermediate_size=fields.integer(family.intermediate_field),
        vocabulary_size=fields.integer("vocab_size"),
        context_tokens_max=fields.integer("max_position_embeddings"),
        norm_epsilon=_norm_epsilon(fields, family),
        rope_theta=_rope_theta(fields, family),
        rope_scaling=_rope_scaling(fields),
        rotary_size=_rotary_size(fields, family, head_size=head_size),
        window_tokens=_window_tokens(fields, family),
        activation=_activation(fields, family),
        has_qkv_bias=fields.bias(family.qkv_bias),
        has_output_bias=fields.bias(family.output_bias),
        has_mlp_bias=fields.bias(family.mlp_bias),
        is_residual_parallel=(
            family.has_parallel_residual and fields.flag("use_parallel_residual", default=True)
        ),
        is_embedding_tied=fields.flag(
            "tie_word_embeddings", default=family.is_embedding_tied_default
        ),
        eos_token_ids=read_eos_token_ids(folder),
    )
    if config.heads % config.kv_heads != 0 or config.rotary_size % 2 != 0:
        raise ModelLoadError(
            f"{fields.path}: {config.heads} heads over {config.kv_heads} KV heads of size "
            f"{config.head_size} do not divide evenly"
        )
    return config


def read_eos_token_ids(folder: Path) -> frozenset[int]:
    """Read them from generation_config.json if it names any, else from config.json, as
    transformers does."""
    path = folder / GENERATION_CONFIG_FILE
    if path.exists():
        token_ids = _read_fields(path).token_ids("eos_token_id")
        if token_ids:
            return token_ids
    return _read_fields(folder / CONFIG_FILE).token_ids("eos_token_id")


def read_dtype_name(folder: Path) -> str | None:
    """Read what the weights are stored in, as config.json says."""
    fields = _read_fields(folder / CONFIG_FILE)
    return fields.text("dtype", fields.text("torch_dtype"))


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
        raise VariantNotSupported(
            f"{fields.path}: model_type {model_type!r} is not supported; "
            f"supported are: {', '.join(sorted(FAMILIES))}"
        )
    return family


def refuse_quantized(folder: Path) -> None:
    """Raise ModelLoadError if the folder's config.json says that its weights are quantized."""
    fields = _read_fields(folder / CONFIG_FILE)
    if fields.has("quantization_config"):
        raise ModelLoadError(f"{fields.path}: quantized weights are not supported")


def _refuse_variants(fields: _Fields, family: Family) -> None:
    if fields.flag("use_sliding_window"):
        raise VariantNotSupported(f"{fields.path}: use_sliding_window is not supported")
    for name, value in family.plain_only:
        if not fields.is_plain(name, value):
            raise VariantNotSupported(f"{fields.path}: {name} is not supported, save as {value}")
    if fields.has("word_embed_proj_dim") and not fields.is_plain(
        "word_embed_proj_dim", fields.integer("hidden_size")
    ):
        raise VariantNotSupported(
            f"{fields.path}: word_embed_proj_dim is not supported, save as hidden_size"
        )


def _activation(fields: _Fields, family: Family) -> Activation:
    name = fields.text(family.activation_field) or family.activation_default
    if name not in ACTIVATIONS:
        raise VariantNotSupported(
            f"{fields.path}: {family.activation_field} {name!r} is not supported; "
            f"supported are: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def _norm_epsilon(fields: _Fields, family: Family) -> float:
    if family.norm_epsilon_field is None:
        return family.norm_epsilon_default
    return fields.number(family.norm_epsilon_field, default=family.norm_epsilon_default)


def _rope_theta(fields: _Fields, family: Family) -> float:
    old_spelling = fields.number(family.rope_theta_field, default=10_000.0)
    return fields.fields("rope_parameters").number("rope_theta", default=old_spelling)


def _rotary_size(fields: _Fields, family: Family, *, head_size: int) -> int:
    if family.names.positions is not None:
        return 0
    share = family.rotary_share_default
    if family.rotary_share_field is not None:
        share = fields.number(family.rotary_share_field, default=share)
        share = fields.fields("rope_parameters").number("partial_rotary_factor", default=share)
    elif not fields.fields("rope_parameters").is_plain("partial_rotary_factor", 1.0):
        raise VariantNotSupported(f"{fields.path}: partial_rotary_factor is not supported")
    return int(head_size * share)


def _window_tokens(fields: _Fields, family: Family) -> int | None:
    if not family.has_window:
        return None
    return fields.optional_integer("sliding_window", family.window_default)


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
            raise VariantNotSupported(
                f"{fields.path}: rope type {rope_type!r} is not supported; "
                "supported are: default, linear, llama3"
            )

"""The model families that the compact decoder knows, as data: what differs between them.

To add a dense family is to add a row here; code is needed only for a kind of layer that none of
the others has.
"""

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """What a checkpoint calls its tensors; those of a layer without the layer's prefix."""

    embedding: str
    heads: tuple[str, ...]
    """The head's weight; the first of these that the checkpoint has."""
    final_norm: str
    layer_prefix: str
    """With {} for the layer's number."""
    attention_norm: str
    qkv: tuple[str, ...]
    """Query, key and value; or one tensor that holds [query, key, value] of each head in turn."""
    output: str
    mlp_norm: str
    up: tuple[str, ...]
    """Gate and up where the MLP is gated, else up alone."""
    down: str
    positions: str | None = None
    """The learned embedding of positions, where there is one."""
    head_norms: tuple[str, str] | None = None
    """The norms over each head's query and key, where there are any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasField:
    """A field of config.json that says whether a linear has a bias."""

    name: str
    default: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What tells one decoder architecture from another; all else is the same for every family."""

    model_type: str
    """As config.json spells it."""
    names: TensorNames
    qkv_bias: bool | BiasField
    output_bias: bool | BiasField
    """Of the attention's output projection."""
    mlp_bias: bool | BiasField
    is_layer_norm: bool = False
    """Norms with mean and bias; else root-mean-square norms."""
    norm_epsilon_field: str | None = "rms_norm_eps"
    """None: config.json has no such field."""
    norm_epsilon_default: float = 1e-6
    activation_field: str = "hidden_act"
    activation_default: str = "silu"
    intermediate_field: str = "intermediate_size"
    head_size_default: int | None = None
    """Where config.json has no head_dim; None: the hidden size over the heads."""
    rotary_share_field: str | None = None
    """The old spelling of partial_rotary_factor, where only a part of each head turns."""
    rotary_share_default: float = 1.0
    rope_theta_field: str = "rope_theta"
    position_offset: int = 0
    """Row of the learned embedding of positions that position 0 has."""
    window_default: int | None = None
    """Sliding window where config.json has no sliding_window at all."""
    has_window: bool = False
    """Whether sliding_window applies to every layer; else only use_sliding_window turns it on."""
    has_parallel_residual: bool = False
    """Whether use_parallel_residual, on by default, lets attention and MLP share their input."""
    is_embedding_tied_default: bool = False
    plain_only: tuple[tuple[str, object], ...] = ()
    """Fields that must be missing or have this value: the variants that are not data."""


LLAMA_NAMES: Final = TensorNames(
    embedding="model.embed_tokens.weight",
    heads=("lm_head.weight",),
    final_norm="model.norm",
    layer_prefix="model.layers.{}.",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
)
QWEN3_NAMES: Final = replace(LLAMA_NAMES, head_norms=("self_attn.q_norm", "self_attn.k_norm"))
GPT_NEOX_NAMES: Final = TensorNames(
    embedding="gpt_neox.embed_in.weight",
    heads=("embed_out.weight", "lm_head.weight"),
    final_norm="gpt_neox.final_layer_norm",
    layer_prefix="gpt_neox.layers.{}.",
    attention_norm="input_layernorm",
    qkv=("attention.query_key_value",),
    output="attention.dense",
    mlp_norm="post_attention_layernorm",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
)
OPT_NAMES: Final = TensorNames(
    embedding="model.decoder.embed_tokens.weight",
    heads=("lm_head.weight",),
    final_norm="model.decoder.final_layer_norm",
    layer_prefix="model.decoder.layers.{}.",
    attention_norm="self_attn_layer_norm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.out_proj",
    mlp_norm="final_layer_norm",
    up=("fc1",),
    down="fc2",
    positions="model.decoder.embed_positions.weight",
)
ATTENTION_BIAS: Final = BiasField(name="attention_bias", default=False)

FAMILIES: Final = {
    family.model_type: family
    for family in (
        Family(
            model_type="llama",
            names=LLAMA_NAMES,
            qkv_bias=ATTENTION_BIAS,
            output_bias=ATTENTION_BIAS,
            mlp_bias=BiasField(name="mlp_bias", default=False),
        ),
        Family(
            model_type="mistral",
            names=LLAMA_NAMES,
            qkv_bias=False,
            output_bias=False,
            mlp_bias=False,
            has_window=True,
            window_default=4096,
        ),
        Family(
            model_type="qwen2", names=LLAMA_NAMES, qkv_bias=True, output_bias=False, mlp_bias=False
        ),
        Family(
            model_type="qwen3",
            names=QWEN3_NAMES,
            qkv_bias=ATTENTION_BIAS,
            output_bias=ATTENTION_BIAS,
            mlp_bias=False,
            head_size_default=128,
        ),
        Family(
            model_type="gpt_neox",
            names=GPT_NEOX_NAMES,
            qkv_bias=BiasField(name="attention_bias", default=True),
            output_bias=BiasField(name="attention_bias", default=True),
            mlp_bias=True,
            is_layer_norm=True,
            norm_epsilon_field="layer_norm_eps",
            norm_epsilon_default=1e-5,
            activation_default="gelu",
            rotary_share_field="rotary_pct",
            rotary_share_default=0.25,
            rope_theta_field="rotary_emb_base",
            has_parallel_residual=True,
        ),
        Family(
            model_type="opt",
            names=OPT_NAMES,
            qkv_bias=BiasField(name="enable_bias", default=True),
            output_bias=BiasField(name="enable_bias", default=True),
            mlp_bias=BiasField(name="enable_bias", default=True),
            is_layer_norm=True,
            norm_epsilon_field=None,
            norm_epsilon_default=1e-5,
            activation_field="activation_function",
            activation_default="relu",
            intermediate_field="ffn_dim",
            position_offset=2,
            is_embedding_tied_default=True,
            plain_only=(
                ("do_layer_norm_before", True),
                ("_remove_final_layer_norm", False),
                ("layer_norm_elementwise_affine", True),
            ),
        ),
    )
}

"""The compact decoder: one forward pass over the flat rows of a step, for every family.

Tensor parallelism is that of Megatron (Shoeybi et al., 2019): attention and MLP are cut by rows,
then by columns, with one sum over the shards behind each, or one for both where they share their
input. Embedding and head are cut by the vocabulary, so that every large tensor is divided by the
shards (an embedding of 128k x 4096 in bf16 is 1 GiB, on 4 shards 256 MiB each); that costs one more
sum at the first stage, and R rows of logits gathered at the last.

Legend: N rows (tokens of the step), R rows whose logits are wanted, C hidden size, V vocabulary,
H heads, K KV heads, D head size, I intermediate size, P positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import torch
import torch.nn.functional as functional

from libs.engine.attention import AttentionRule, AttentionStep, PagedAttention
from libs.engine.linear import Linear
from libs.engine.model_config import Activation, ModelConfig
from libs.engine.parallel.position import Position
from libs.engine.rotary import RotaryTables, Rotation
from libs.engine.safepoints import Safepoints

ACTIVATION_FUNCTIONS: Final[dict[Activation, Callable[[torch.Tensor], torch.Tensor]]] = {
    "silu": partial(functional.silu, inplace=True),
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": partial(functional.relu, inplace=True),
}
"""They may overwrite what they are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderStep:
    """The inputs of one forward pass."""

    token_ids_N: torch.Tensor
    positions_N: torch.Tensor
    logit_rows_R: torch.Tensor
    """The rows whose logits are wanted, in the order in which they are returned."""
    attention: AttentionStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A layer norm, or without a bias a root-mean-square norm."""

    weight_C: torch.Tensor
    bias_C: torch.Tensor | None
    epsilon: float

    def __call__(self, hidden_NC: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        """Normalise each row; in float32 inside, rounded before the weight as llama does.

        The result may lie in `out`, of the same shape, or not.
        """
        weight_C = self.weight_C
        if self.bias_C is not None:
            return functional.layer_norm(
                hidden_NC, weight_C.shape, weight_C, self.bias_C, self.epsilon
            )
        wide_NC = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
        torch.mul(hidden_NC, hidden_NC.to(wide_NC.dtype), out=wide_NC)
        scale_N1 = wide_NC.mean(-1, keepdim=True).add_(self.epsilon).rsqrt_()
        torch.mul(hidden_NC, scale_N1, out=wide_NC)
        if wide_NC is not out:
            out.copy_(wide_NC)
        return out.mul_(weight_C)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """The weights of one layer."""

    attention_norm: Norm
    qkv: Linear
    head_norms: tuple[Norm, Norm] | None
    """Over each head's query and key."""
    output: Linear
    mlp_norm: Norm
    up: Linear
    """Gate and up in one, where the MLP is gated."""
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What makes the first layer's input."""

    tokens_VC: torch.Tensor
    """This shard's rows of the vocabulary."""
    first_token_id: int
    positions_PC: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What makes logits of the last layer's output."""

    norm: Norm
    linear: Linear
    """Of this shard's rows of the vocabulary."""


class ShardSum(Protocol):
    """What the shards of a stage do together."""

    def add_up_(self, partial_NC: torch.Tensor) -> None:
        """Replace the tensor by its sum over the shards."""

    def add_up_voting_(self, partial_NC: torch.Tensor, *, is_for: bool) -> bool:
        """As `add_up_`, in the same sum; return whether any shard is for what they vote on."""

    def join_columns(self, part_RV: torch.Tensor, *, columns: int) -> torch.Tensor | None:
        """Return all shards' columns, in their order, on shard 0; None on the others."""


@dataclass(slots=True, kw_only=True)
class Pass:
    """Some rows on their way through the layers."""

    hidden_NC: torch.Tensor
    step: DecoderStep
    rotation: Rotation | None
    scratch: "_Scratch"


class Decoder:
    """The part of a dense decoder that stands at one position; its KV is in a PagedAttention.

    One forward pass: `embed` at the first stage or `enter` at a later one, then `run_layers`, then
    `logits` at the last.
    """

    def __init__(
        self,
        config: ModelConfig,
        position: Position,
        *,
        layers: tuple[DecoderLayer, ...],
        embedding: Embedding | None,
        head: Head | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self.position = position
        self.dtype = dtype
        self.device = device
        self.shard_sum: ShardSum | None = None
        """To be set before the first pass where there are several shards."""
        self._layers = layers
        self._embedding = embedding
        self._head = head
        self._heads = len(position.head_range(config))
        self._turned_heads = self._heads + len(position.kv_head_range(config))
        self._rotary: RotaryTables | None = None
        if config.rotary_size:
            self._rotary = RotaryTables(config, dtype=self.dtype, device=self.device)
        self._rule = AttentionRule(window_tokens=config.window_tokens)
        self._activation = ACTIVATION_FUNCTIONS[config.activation]
        self._is_gated = len(config.family.names.up) == 2

    def forward(
        self, step: DecoderStep, *, attention: PagedAttention, safepoints: Safepoints | None = None
    ) -> torch.Tensor | None:
        """Compute the rows, write their KV, and return logits_RV in the weights' type; None if the
        step was given up at a safepoint.

        For a position that holds the whole model.
        """
        rows = self.embed(step)
        if not self.run_layers(rows, attention=attention, safepoints=safepoints):
            return None
        return self.logits(self.logit_rows(rows))

    def embed(self, step: DecoderStep) -> Pass:
        """Begin a pass at the first stage."""
        assert self._embedding is not None
        hidden_NC = self._embedded(step.token_ids_N, self._embedding)
        if self._embedding.positions_PC is not None:
            rows_N = step.positions_N + self.config.family.position_offset
            hidden_NC = hidden_NC + functional.embedding(rows_N, self._embedding.positions_PC)
        return self.enter(step, hidden_NC)

    def enter(self, step: DecoderStep, hidden_NC: torch.Tensor) -> Pass:
        """Begin a pass at a later stage with what the one before it computed."""
        return Pass(
            hidden_NC=hidden_NC,
            step=step,
            rotation=None if self._rotary is None else self._rotary.at(step.positions_N),
            scratch=self._scratch(rows=hidden_NC.shape[0]),
        )

    def run_layers(
        self, rows: Pass, *, attention: PagedAttention, safepoints: Safepoints | None = None
    ) -> bool:
        """Compute the layers of this position and write their KV; say whether they are complete.

        If they were given up at a safepoint the hidden states are worthless. All shards of the
        stage return the same. Without safepoints they are never given up.
        """
        hidden_NC = rows.hidden_NC
        for index in self.position.layers:
            layer = self._layers[index - self.position.layer_start]
            change_NC = self._attend(rows, layer, index=index, attention=attention)
            if self.config.is_residual_parallel:
                change_NC = self._transform(hidden_NC, layer, rows.scratch).add_(change_NC)
            else:
                hidden_NC.add_(self._summed(change_NC))
                change_NC = self._transform(hidden_NC, layer, rows.scratch)
            if self._is_safepoint(index + 1, safepoints):
                assert safepoints is not None
                vote = None if self.shard_sum is None else partial(self._vote, change_NC)
                if safepoints.must_stop(layer=index + 1, vote=vote):
                    return False
            else:
                self._summed(change_NC)
            hidden_NC.add_(change_NC)
        return True

    def logit_rows(self, rows: Pass) -> torch.Tensor:
        """Return hidden_RC of the rows whose logits are wanted."""
        return rows.hidden_NC.index_select(0, rows.step.logit_rows_R)

    def logits(self, hidden_RC: torch.Tensor) -> torch.Tensor | None:
        """Return logits_RV of rows that passed all layers; None on shards other than the first."""
        assert self._head is not None
        normed_RC = self._head.norm(hidden_RC, out=torch.empty_like(hidden_RC))
        logits_RV = self._head.linear(normed_RC)
        if self.shard_sum is None:
            return logits_RV
        return self.shard_sum.join_columns(logits_RV, columns=self.config.vocabulary_size)

    def _embedded(self, token_ids_N: torch.Tensor, embedding: Embedding) -> torch.Tensor:
        if self.shard_sum is None:
            return functional.embedding(token_ids_N, embedding.tokens_VC)
        rows_N = token_ids_N - embedding.first_token_id
        is_elsewhere_N = (rows_N < 0) | (rows_N >= embedding.tokens_VC.shape[0])
        hidden_NC = functional.embedding(
            rows_N.masked_fill_(is_elsewhere_N, 0), embedding.tokens_VC
        )
        return self._summed(hidden_NC.masked_fill_(is_elsewhere_N[:, None], 0.0))

    def _is_safepoint(self, layer: int, safepoints: Safepoints | None) -> bool:
        """Whether one lies before this layer: none behind the last, where only the head is left."""
        return safepoints is not None and layer < self.config.layers and safepoints.is_before(layer)

    def _vote(self, partial_NC: torch.Tensor, is_for: bool) -> bool:
        assert self.shard_sum is not None
        return self.shard_sum.add_up_voting_(partial_NC, is_for=is_for)

    def _summed(self, partial_NC: torch.Tensor) -> torch.Tensor:
        if self.shard_sum is not None:
            self.shard_sum.add_up_(partial_NC)
        return partial_NC

    def _attend(
        self, rows: Pass, layer: DecoderLayer, *, index: int, attention: PagedAttention
    ) -> torch.Tensor:
        head_size, rotary_size = self.config.head_size, self.config.rotary_size
        qkv = layer.qkv(layer.attention_norm(rows.hidden_NC, out=rows.scratch.normed_NC))
        heads_NHD = qkv.view(qkv.shape[0], -1, head_size)
        if layer.head_norms is not None:
            query_norm, key_norm = layer.head_norms
            _normalise_(heads_NHD[:, : self._heads], query_norm)
            _normalise_(heads_NHD[:, self._heads : self._turned_heads], key_norm)
        if rows.rotation is not None:
            turned_NHD = heads_NHD[:, : self._turned_heads, :rotary_size]
            rows.rotation.apply_(turned_NHD, scratch_NHD=rows.scratch.turned_NHD)
        attended_NC = attention.attend(
            rows.step.attention,
            layer=index,
            query_NHD=heads_NHD[:, : self._heads],
            kv_N2KD=heads_NHD[:, self._heads :],
            rule=self._rule,
        )
        return layer.output(attended_NC)

    def _transform(
        self, hidden_NC: torch.Tensor, layer: DecoderLayer, scratch: "_Scratch"
    ) -> torch.Tensor:
        """Apply the MLP."""
        up = layer.up(layer.mlp_norm(hidden_NC, out=scratch.normed_NC))
        if not self._is_gated:
            return layer.down(self._activation(up))
        gate_NI, up_NI = up.chunk(2, dim=-1)
        return layer.down(torch.mul(self._activation(gate_NI), up_NI, out=scratch.active_NI))

    def _scratch(self, *, rows: int) -> "_Scratch":
        config = self.config
        empty = partial(torch.empty, dtype=self.dtype, device=self.device)
        intermediate_size = len(self.position.share(config.intermediate_size))
        return _Scratch(
            normed_NC=empty((rows, config.hidden_size)),
            active_NI=empty((rows, intermediate_size)),
            turned_NHD=empty((rows, self._turned_heads, config.rotary_size)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scratch:
    """Results that every layer of a step overwrites: a fresh tensor of some megabytes for each
    would fault in its pages again and again, at several times the cost of computing it."""

    normed_NC: torch.Tensor
    active_NI: torch.Tensor
    turned_NHD: torch.Tensor


def _normalise_(heads_NHD: torch.Tensor, norm: Norm) -> None:
    heads_NHD.copy_(norm(heads_NHD, out=torch.empty_like(heads_NHD)))

"""The compact decoder: one forward pass over the flat rows of a step, for every family.

Legend: N rows (tokens of the step), R rows whose logits are wanted, C hidden size, V vocabulary,
H heads, K KV heads, D head size, I intermediate size, P positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as functional

from libs.engine.attention import AttentionRule, AttentionStep, PagedAttention
from libs.engine.linear import LayoutChooser, Linear
from libs.engine.model_config import Activation, ModelConfig
from libs.engine.rotary import RotaryTables, Rotation
from libs.engine.weights import (
    Checkpoint,
    LinearRows,
    NormRows,
    TensorRow,
    embedding_row,
    final_norm_rows,
    head_rows,
    layer_rows,
    positions_row,
)

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
    sampling_rows_R: torch.Tensor
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


class Decoder:
    """A dense decoder whose KV lives in a PagedAttention."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        layers: tuple[DecoderLayer, ...],
        embedding_VC: torch.Tensor,
        positions_PC: torch.Tensor | None,
        final_norm: Norm,
        head: Linear,
    ) -> None:
        self.config = config
        self.dtype = embedding_VC.dtype
        self.device = embedding_VC.device
        self._layers = layers
        self._embedding = embedding_VC
        self._positions = positions_PC
        self._final_norm = final_norm
        self._head = head
        self._turned_heads = config.heads + config.kv_heads
        self._rotary: RotaryTables | None = None
        if config.rotary_size:
            self._rotary = RotaryTables(config, dtype=self.dtype, device=self.device)
        self._rule = AttentionRule(window_tokens=config.window_tokens)
        self._activation = ACTIVATION_FUNCTIONS[config.activation]
        self._is_gated = len(config.family.names.up) == 2

    def forward(self, step: DecoderStep, *, attention: PagedAttention) -> torch.Tensor:
        """Compute the rows, write their KV, and return logits_RV in the weights' type."""
        hidden_NC = functional.embedding(step.token_ids_N, self._embedding)
        if self._positions is not None:
            rows_N = step.positions_N + self.config.family.position_offset
            hidden_NC = hidden_NC + functional.embedding(rows_N, self._positions)
        rotation = None if self._rotary is None else self._rotary.at(step.positions_N)
        scratch = self._scratch(rows=hidden_NC.shape[0])
        for index, layer in enumerate(self._layers):
            attended_NC = self._attend(
                layer.qkv(layer.attention_norm(hidden_NC, out=scratch.normed_NC)),
                weights=layer,
                step=step.attention,
                layer=index,
                rotation=rotation,
                scratch=scratch,
                attention=attention,
            )
            if self.config.is_residual_parallel:
                hidden_NC.add_(self._transform(hidden_NC, layer, scratch).add_(attended_NC))
            else:
                hidden_NC.add_(attended_NC)
                hidden_NC.add_(self._transform(hidden_NC, layer, scratch))
        last_RC = hidden_NC.index_select(0, step.sampling_rows_R)
        return self._head(self._final_norm(last_RC, out=torch.empty_like(last_RC)))

    def _attend(
        self,
        qkv: torch.Tensor,
        *,
        weights: DecoderLayer,
        step: AttentionStep,
        layer: int,
        rotation: Rotation | None,
        scratch: "_Scratch",
        attention: PagedAttention,
    ) -> torch.Tensor:
        config = self.config
        heads_NHD = qkv.view(qkv.shape[0], -1, config.head_size)
        if weights.head_norms is not None:
            query_norm, key_norm = weights.head_norms
            _normalise_(heads_NHD[:, : config.heads], query_norm)
            _normalise_(heads_NHD[:, config.heads : self._turned_heads], key_norm)
        if rotation is not None:
            turned_NHD = heads_NHD[:, : self._turned_heads, : config.rotary_size]
            rotation.apply_(turned_NHD, scratch_NHD=scratch.turned_NHD)
        attended_NC = attention.attend(
            step,
            layer=layer,
            query_NHD=heads_NHD[:, : config.heads],
            kv_N2KD=heads_NHD[:, config.heads :],
            rule=self._rule,
        )
        return weights.output(attended_NC)

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
        empty = self._embedding.new_empty
        return _Scratch(
            normed_NC=empty((rows, config.hidden_size)),
            active_NI=empty((rows, config.intermediate_size)),
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


def load_decoder(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    row_copy_bytes_max: int,
) -> Decoder:
    """Load the weights of every layer from the folder's safetensors.

    Raises: ModelLoadError naming the file and tensor that is missing or wrong.
    """
    with Checkpoint(folder) as checkpoint:
        loader = _Loader(
            checkpoint,
            config,
            dtype=dtype,
            device=device,
            row_copy_bytes_max=row_copy_bytes_max,
        )
        positions = positions_row(config)
        return Decoder(
            config,
            layers=tuple(loader.layer(layer) for layer in range(config.layers)),
            embedding_VC=loader.tensor(embedding_row(config)),
            positions_PC=None if positions is None else loader.tensor(positions),
            final_norm=loader.norm(final_norm_rows(config)),
            head=loader.linear(head_rows(config, names_present=checkpoint.names)),
        )


class _Loader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        row_copy_bytes_max: int,
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._dtype = dtype
        self._device = device
        self._layouts = LayoutChooser(row_copy_bytes_max=row_copy_bytes_max)

    def layer(self, layer: int) -> DecoderLayer:
        rows = layer_rows(self._config, layer=layer)
        head_norms = None
        if rows.head_norms is not None:
            head_norms = (self.norm(rows.head_norms[0]), self.norm(rows.head_norms[1]))
        return DecoderLayer(
            attention_norm=self.norm(rows.attention_norm),
            qkv=self.linear(rows.qkv),
            head_norms=head_norms,
            output=self.linear(rows.output),
            mlp_norm=self.norm(rows.mlp_norm),
            up=self.linear(rows.up),
            down=self.linear(rows.down),
        )

    def tensor(self, row: TensorRow) -> torch.Tensor:
        return self._checkpoint.read(row, dtype=self._dtype).to(self._device)

    def norm(self, rows: NormRows) -> Norm:
        return Norm(
            weight_C=self.tensor(rows.weight),
            bias_C=None if rows.bias is None else self.tensor(rows.bias),
            epsilon=self._config.norm_epsilon,
        )

    def linear(self, rows: LinearRows) -> Linear:
        weight = self._fused(rows.weights, rows.heads_interleaved)
        bias = self._fused(rows.biases, rows.heads_interleaved) if rows.biases else None
        return Linear(weight, bias, layout=self._layouts.choose(weight))

    def _fused(self, rows: tuple[TensorRow, ...], heads_interleaved: int | None) -> torch.Tensor:
        fused = self._checkpoint.read_fused(
            rows, dtype=self._dtype, heads_interleaved=heads_interleaved
        )
        return fused.to(self._device)

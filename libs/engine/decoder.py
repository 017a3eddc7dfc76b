"""The compact decoder: one forward pass over the flat rows of a step, for every family.

Legend: N rows (tokens of the step), R rows whose logits are wanted, C hidden size, V vocabulary,
H heads, K KV heads, D head size, I intermediate size.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional

from libs.engine.attention import AttentionStep, PagedAttention
from libs.engine.linear import LayoutChooser, Linear
from libs.engine.model_config import ModelConfig
from libs.engine.rotary import RotaryTables, Rotation
from libs.engine.weights import (
    Checkpoint,
    LinearRows,
    embedding_row,
    final_norm_row,
    head_rows,
    layer_rows,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderStep:
    """The inputs of one forward pass."""

    token_ids_N: torch.Tensor
    positions_N: torch.Tensor
    sampling_rows_R: torch.Tensor
    """The rows that are a sequence's last token, ascending."""
    attention: AttentionStep


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """The weights of one layer."""

    attention_norm_C: torch.Tensor
    qkv: Linear
    output: Linear
    mlp_norm_C: torch.Tensor
    gate_up: Linear
    down: Linear


class Decoder:
    """A llama-like decoder whose KV lives in a PagedAttention."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        layers: tuple[DecoderLayer, ...],
        embedding_VC: torch.Tensor,
        final_norm_C: torch.Tensor,
        head: Linear,
    ) -> None:
        self.config = config
        self.dtype = embedding_VC.dtype
        self.device = embedding_VC.device
        self._layers = layers
        self._embedding = embedding_VC
        self._final_norm = final_norm_C
        self._head = head
        self._rotary = RotaryTables(config, dtype=self.dtype, device=self.device)

    def forward(self, step: DecoderStep, *, attention: PagedAttention) -> torch.Tensor:
        """Compute the rows, write their KV, and return logits_RV in the weights' type."""
        hidden_NC = functional.embedding(step.token_ids_N, self._embedding)
        rotation = self._rotary.at(step.positions_N)
        for index, layer in enumerate(self._layers):
            hidden_NC = hidden_NC + layer.output(
                self._attend(
                    layer.qkv(self._norm(hidden_NC, layer.attention_norm_C)),
                    step=step.attention,
                    layer=index,
                    rotation=rotation,
                    attention=attention,
                )
            )
            gate_up = layer.gate_up(self._norm(hidden_NC, layer.mlp_norm_C))
            gate_NI, up_NI = gate_up.chunk(2, dim=-1)
            hidden_NC = hidden_NC + layer.down(functional.silu(gate_NI).mul_(up_NI))
        last_RC = hidden_NC.index_select(0, step.sampling_rows_R)
        return self._head(self._norm(last_RC, self._final_norm))

    def _attend(
        self,
        qkv: torch.Tensor,
        *,
        step: AttentionStep,
        layer: int,
        rotation: Rotation,
        attention: PagedAttention,
    ) -> torch.Tensor:
        config = self.config
        heads_NHD = qkv.view(qkv.shape[0], -1, config.head_size)
        keys_end = config.heads + config.kv_heads
        rotation.apply_(heads_NHD[:, :keys_end])
        return attention.attend(
            step,
            layer=layer,
            query_NHD=heads_NHD[:, : config.heads],
            kv_N2KD=heads_NHD[:, config.heads :],
        )

    def _norm(self, hidden_NC: torch.Tensor, weight_C: torch.Tensor) -> torch.Tensor:
        """Root-mean-square norm, in float32 inside, rounded before the weight as llama does."""
        if self.dtype == torch.float32:
            return functional.rms_norm(
                hidden_NC, weight_C.shape, weight_C, self.config.norm_epsilon
            )
        wide = hidden_NC.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.norm_epsilon)
        return weight_C * (wide * scale).to(self.dtype)


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
            checkpoint, dtype=dtype, device=device, row_copy_bytes_max=row_copy_bytes_max
        )
        return Decoder(
            config,
            layers=tuple(loader.layer(config, layer=layer) for layer in range(config.layers)),
            embedding_VC=checkpoint.read(embedding_row(config), dtype=dtype).to(device),
            final_norm_C=checkpoint.read(final_norm_row(config), dtype=dtype).to(device),
            head=loader.linear(head_rows(config)),
        )


class _Loader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        row_copy_bytes_max: int,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._layouts = LayoutChooser(row_copy_bytes_max=row_copy_bytes_max)

    def layer(self, config: ModelConfig, *, layer: int) -> DecoderLayer:
        rows = layer_rows(config, layer=layer)
        read = self._checkpoint.read
        return DecoderLayer(
            attention_norm_C=read(rows.attention_norm, dtype=self._dtype).to(self._device),
            qkv=self.linear(rows.qkv),
            output=self.linear(rows.output),
            mlp_norm_C=read(rows.mlp_norm, dtype=self._dtype).to(self._device),
            gate_up=self.linear(rows.gate_up),
            down=self.linear(rows.down),
        )

    def linear(self, rows: LinearRows) -> Linear:
        weight = self._checkpoint.read_fused(rows.weights, dtype=self._dtype).to(self._device)
        bias = None
        if rows.biases:
            bias = self._checkpoint.read_fused(rows.biases, dtype=self._dtype).to(self._device)
        return Linear(weight, bias, layout=self._layouts.choose(weight))

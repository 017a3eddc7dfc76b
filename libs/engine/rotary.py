"""Rotary position embedding, computed in the same steps as transformers does, to the last bit.

Legend: P positions, N rows (tokens), H heads, D elements of each head that turn.
"""

import math

import torch

from libs.engine.model_config import LinearScaling, Llama3Scaling, ModelConfig


class RotaryTables:
    """Cosines and signed sines of every position up to the context's end, held once."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        frequencies = _scaled_frequencies(config)
        positions = torch.arange(config.context_tokens_max, dtype=torch.float32)
        angles = positions[:, None] * frequencies
        sines = angles.sin()
        self.cos_PD = torch.cat((angles.cos(), angles.cos()), dim=-1).to(device, dtype)
        self.signed_sin_PD = torch.cat((-sines, sines), dim=-1).to(device, dtype)

    def at(self, positions_N: torch.Tensor) -> "Rotation":
        """Gather the rotation of these positions, once per step for all layers."""
        return Rotation(
            self.cos_PD.index_select(0, positions_N).unsqueeze(1),
            self.signed_sin_PD.index_select(0, positions_N).unsqueeze(1),
        )


class Rotation:
    """Turns heads by the angle of their position."""

    def __init__(self, cos_N1D: torch.Tensor, signed_sin_N1D: torch.Tensor) -> None:
        self._cos = cos_N1D
        self._signed_sin = signed_sin_N1D
        self._half = cos_N1D.shape[-1] // 2

    def apply_(self, heads_NHD: torch.Tensor, *, scratch_NHD: torch.Tensor) -> None:
        """Turn the heads in place; queries and keys may be passed as one."""
        # x * cos + swapped halves * (-sin, sin) is x * cos + rotate_half(x) * sin.
        scratch_NHD[..., : self._half] = heads_NHD[..., self._half :]
        scratch_NHD[..., self._half :] = heads_NHD[..., : self._half]
        heads_NHD.mul_(self._cos).addcmul_(scratch_NHD, self._signed_sin)


def _scaled_frequencies(config: ModelConfig) -> torch.Tensor:
    pairs = torch.arange(0, config.rotary_size, 2, dtype=torch.float32)
    frequencies: torch.Tensor = 1.0 / (config.rope_theta ** (pairs / config.rotary_size))
    match config.rope_scaling:
        case None:
            return frequencies
        case LinearScaling(factor=factor):
            return frequencies / factor
        case Llama3Scaling() as scaling:
            return _llama3_scaled(frequencies, scaling)


def _llama3_scaled(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Keep short wavelengths, divide long ones by the factor, blend between.

    Source: transformers' modeling_rope_utils, _compute_llama3_parameters.
    """
    wavelengths = 2 * math.pi / frequencies
    low_wavelength = scaling.original_context_tokens / scaling.low_frequency_factor
    high_wavelength = scaling.original_context_tokens / scaling.high_frequency_factor
    stretched = frequencies / scaling.factor
    smooth = (scaling.original_context_tokens / wavelengths - scaling.low_frequency_factor) / (
        scaling.high_frequency_factor - scaling.low_frequency_factor
    )
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    result = torch.where(wavelengths > low_wavelength, stretched, frequencies)
    is_between = (wavelengths >= high_wavelength) & (wavelengths <= low_wavelength)
    return torch.where(is_between, blended, result)

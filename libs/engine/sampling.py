"""Chooses tokens from logits, the same one wherever and with whomever a sequence runs.

Greedy is argmax. Otherwise the Gumbel-max trick: the token with the greatest
logit / temperature + noise is a sample of the softmax. The noise of a token is a function of
(seed, index of the generated token, token id), hashed in 64-bit integers, so it depends neither
on the batch, nor on the device, nor on what was sampled before; a sequence resumed elsewhere
goes on with the same noise.

Order of operations, that of vLLM (documentation of its v1 Sampler, 0.22):

1. Log probabilities are taken, from the logits as the model gave them (`token_scores`).
2. min_tokens, logit_bias, then repetition, frequency and presence penalty (`logits_adjuster`).
3. The answer's schema forbids. vLLM does this first; what is forbidden stays so either way.
4. The best token if the temperature is 0. Else the logits are divided by the temperature; tokens
   below min_p of the best one's probability go, then all but the top_k, then, of the probability
   that is left, all but top_p; and one token is drawn of the rest.

Legend: R rows, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from libs.engine.logits_adjuster import LogitsAdjuster
from libs.engine.requests import SamplingOptions

MASK_64: Final = (1 << 64) - 1
NOISY_SCORES_MAX: Final = 1 << 16
"""Scores that get their noise at a time on a CPU: half a MiB each of some twenty intermediate
results, which stay in cache. All 64 rows of a vocabulary of 16,000 took twice as long at once."""
GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15
MIX_1: Final = 0xBF58476D1CE4E5B9
MIX_2: Final = 0x94D049BB133111EB
"""Increment and finalizer of SplitMix64. Source: Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014; constants as in Vigna's splitmix64.c."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRow:
    """How one row's token is chosen."""

    options: SamplingOptions
    output_index: int
    """Index of the token among the generated ones: the position of its noise."""
    adjuster: LogitsAdjuster | None = None
    """None where nothing changes the logits."""


def sample_tokens(logits_RV: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Choose one token per row; a batch of greedy rows costs one argmax.

    Among equal scores the lowest token id wins where nothing is filtered.
    """
    logits_RV = _adjusted(logits_RV, rows)
    tokens: list[int] = logits_RV.argmax(dim=-1).tolist()
    noisy = [index for index, row in enumerate(rows) if row.options.temperature > 0]
    at_a_time = max(1, len(noisy))
    if logits_RV.device.type == "cpu":
        at_a_time = max(1, NOISY_SCORES_MAX // logits_RV.shape[1])
    for first in range(0, len(noisy), at_a_time):
        some = noisy[first : first + at_a_time]
        chosen_RV = logits_RV[torch.tensor(some, device=logits_RV.device)].double()
        for index, token_id in zip(
            some, _sample_noisy(chosen_RV, [rows[i] for i in some]), strict=True
        ):
            tokens[index] = token_id
    return tokens


def gumbel_noise(
    rows: Sequence[SamplingRow], *, vocabulary_size: int, device: torch.device
) -> torch.Tensor:
    """Return the noise_RV of standard Gumbel distribution, in float64."""
    keys = [_signed(_row_key(row)) for row in rows]
    keys_R1 = torch.tensor(keys, dtype=torch.int64, device=device)[:, None]
    ids_V = torch.arange(1, vocabulary_size + 1, dtype=torch.int64, device=device)
    mixed_RV = _mix(keys_R1 + ids_V * _signed(GOLDEN_GAMMA))
    # 53 bits fill a float64 exactly; the half keeps 0 and 1 out of the logarithms.
    uniform_RV = (_shift_right(mixed_RV, 11).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform_RV))


def _adjusted(logits_RV: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Return the logits as the rows' options change them, a copy if any does."""
    if all(row.adjuster is None for row in rows):
        return logits_RV
    adjusted_RV = logits_RV.to(torch.float32, copy=True)
    for logits_V, row in zip(adjusted_RV, rows, strict=True):
        if row.adjuster is not None:
            row.adjuster.adjust_(logits_V, output_index=row.output_index)
    return adjusted_RV


def _sample_noisy(logits_RV: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    temperatures = [row.options.temperature for row in rows]
    scores_RV = logits_RV / torch.tensor(temperatures, device=logits_RV.device)[:, None]
    filtered = [
        index
        for index, row in enumerate(rows)
        if row.options.top_k is not None or row.options.top_p < 1 or row.options.min_p > 0
    ]
    if filtered:
        picked = torch.tensor(filtered, device=logits_RV.device)
        scores_RV[picked] = _keep_best(scores_RV[picked], [rows[i].options for i in filtered])
    noise_RV = gumbel_noise(rows, vocabulary_size=logits_RV.shape[1], device=logits_RV.device)
    tokens: list[int] = (scores_RV + noise_RV).argmax(dim=-1).tolist()
    return tokens


def _keep_best(scores_RV: torch.Tensor, options: Sequence[SamplingOptions]) -> torch.Tensor:
    """Set what is below min-p, then all but the top-k, then all but the top-p of what is left to
    minus infinity.

    The best token always stays. Equal scores are ranked by token id.
    """
    vocabulary_size = scores_RV.shape[1]
    device = scores_RV.device
    sorted_RV, order_RV = scores_RV.sort(dim=-1, descending=True, stable=True)
    ranks_V = torch.arange(vocabulary_size, device=device)
    top_k = [option.top_k or vocabulary_size for option in options]
    is_dropped_RV = ranks_V >= torch.tensor(top_k, device=device)[:, None]
    # A share of the best probability is a distance from the best score.
    distances = [-math.log(option.min_p) if option.min_p > 0 else math.inf for option in options]
    lowest_R1 = (
        sorted_RV[:, :1] - torch.tensor(distances, dtype=torch.float64, device=device)[:, None]
    )
    is_dropped_RV = is_dropped_RV | (sorted_RV < lowest_R1)
    sorted_RV = sorted_RV.masked_fill(is_dropped_RV, float("-inf"))
    probabilities_RV = sorted_RV.softmax(dim=-1)
    before_RV = probabilities_RV.cumsum(dim=-1) - probabilities_RV
    top_p = torch.tensor([option.top_p for option in options], dtype=torch.float64, device=device)
    is_beyond_RV = (before_RV >= top_p[:, None]) & (ranks_V > 0)
    sorted_RV = sorted_RV.masked_fill(is_beyond_RV, float("-inf"))
    return torch.empty_like(scores_RV).scatter_(1, order_RV, sorted_RV)


def _row_key(row: SamplingRow) -> int:
    """Mix seed and position in Python's integers, which have no sign and no limit."""
    seed_key = _mix_integer(row.options.seed & MASK_64)
    return _mix_integer((seed_key + (row.output_index + 1) * GOLDEN_GAMMA) & MASK_64)


def _mix_integer(value: int) -> int:
    value = ((value ^ (value >> 30)) * MIX_1) & MASK_64
    value = ((value ^ (value >> 27)) * MIX_2) & MASK_64
    return value ^ (value >> 31)


def _mix(value: torch.Tensor) -> torch.Tensor:
    """Do as _mix_integer does, element by element; int64 multiplication wraps."""
    value = (value ^ _shift_right(value, 30)) * _signed(MIX_1)
    value = (value ^ _shift_right(value, 27)) * _signed(MIX_2)
    return value ^ _shift_right(value, 31)


def _shift_right(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift without the sign, which int64's own shift would copy."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value

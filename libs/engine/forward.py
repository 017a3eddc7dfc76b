"""The forward pass of a plan: from its tokens to the logits that are sampled."""

from collections.abc import Sequence
from typing import Protocol

import torch

from libs.engine.attention import PagedAttention
from libs.engine.decoder import DecoderStep
from libs.engine.safepoints import Safepoints
from libs.engine.steps import PlanEntry, StepPlan


class ForwardPass(Protocol):
    """Whatever computes a plan's logits: a whole model, or one position together with others."""

    @property
    def device(self) -> torch.device:
        """Where the logits are."""

    @property
    def safepoints(self) -> Safepoints:
        """Where its steps may be given up, and their signal."""

    def logits(self, plan: StepPlan) -> torch.Tensor | None:
        """Compute the plan's rows, write their KV, and return logits_RV of the wanted ones: entry
        by entry, `PlanEntry.logit_rows` of each. None if the step was given up at a safepoint: its
        KV is then to be computed again."""


class StepDecoder(Protocol):
    """A whole model whose KV lives in a PagedAttention."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, the KV and the logits."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def forward(
        self, step: DecoderStep, *, attention: PagedAttention, safepoints: Safepoints | None = None
    ) -> torch.Tensor | None:
        """Compute the rows, write their KV, and return logits_RV of the wanted ones; None if they
        were given up at a safepoint."""


class WholePass:
    """A whole model in this process."""

    def __init__(self, decoder: StepDecoder, attention: PagedAttention) -> None:
        self._decoder = decoder
        self._attention = attention
        self.safepoints = Safepoints(decoder.device)

    @property
    def device(self) -> torch.device:
        """Where the logits are."""
        return self._decoder.device

    def logits(self, plan: StepPlan) -> torch.Tensor | None:
        """See ForwardPass."""
        step = decoder_step(plan.entries, self._attention, device=self.device)
        with self.safepoints.of_step(plan):
            return self._decoder.forward(
                step, attention=self._attention, safepoints=self.safepoints
            )


def decoder_step(
    entries: Sequence[PlanEntry], attention: PagedAttention, *, device: torch.device
) -> DecoderStep:
    """Lay out the rows of some entries."""
    token_ids: list[int] = []
    positions: list[int] = []
    logit_rows: list[int] = []
    for entry in entries:
        first_row = len(token_ids)
        logit_rows += range(first_row, first_row + entry.tokens_scored)
        token_ids += entry.token_ids
        end = entry.start_position + len(entry.token_ids)
        positions += range(entry.start_position, end)
        if entry.is_sampling:
            logit_rows.append(len(token_ids) - 1)
    return DecoderStep(
        token_ids_N=torch.tensor(token_ids, device=device),
        positions_N=torch.tensor(positions, device=device),
        logit_rows_R=torch.tensor(logit_rows, dtype=torch.int64, device=device),
        attention=attention.prepare(entries),
    )
